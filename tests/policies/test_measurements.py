"""What is kept of a measurement, and everything in a file that keeps it from being used."""

import json
import os
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from hybrid.policies.latency import LatencyModel
from hybrid.policies.loader import parse_policy
from hybrid.policies.measurements import (
    MAX_BYTES,
    Measurement,
    Unusable,
    cache_file,
    hardware,
    history_file,
    is_writable,
    others,
    read_measurement,
    write_atomically,
    write_measurement,
)

POLICY = parse_policy("version: 1\n", "p")
COSTS = LatencyModel(0.0, 0.01, 0.001, 0.002, 0.003, 0.004, 0.0005, 0.006, 1.5, 32)
MEASURED = Measurement(COSTS, "calibrated", "2026-01-02T03:04:05+00:00")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def change(**changes: Any) -> Measurement | Unusable:
    """What is read of a file with other contents."""
    file = cache_file(POLICY)
    write_measurement(file, MEASURED, POLICY)
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return read_measurement(file)


def costs(**changes: Any) -> dict[str, Any]:
    write_measurement(cache_file(POLICY), MEASURED, POLICY)
    found: dict[str, Any] = json.loads(cache_file(POLICY).read_text())["costs"]
    return {**found, **changes}


def test_a_measurement_is_kept_and_found_again() -> None:
    file = cache_file(POLICY)
    assert read_measurement(file) == Unusable("")
    assert write_measurement(file, MEASURED, POLICY)
    assert read_measurement(file) == MEASURED
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_it_says_how_and_when_it_was_measured() -> None:
    assert MEASURED.description == "calibrated on 2026-01-02"
    quick = Measurement(COSTS, "quick", "2026-01-02T03:04:05+00:00")
    assert "hybrid calibrate" in quick.description


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert cache_file(POLICY).parent == cache / "hybrid" / "latency"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(cache))
    assert cache_file(POLICY).parent == cache / ".cache" / "hybrid" / "latency"


def test_other_models_are_kept_elsewhere() -> None:
    other = parse_policy("version: 1\nmodels: {refiner: null}\n", "p")
    assert cache_file(other) != cache_file(POLICY)
    rounded = parse_policy("version: 1\nmodels: {drafter: {activations: nvfp4}}\n", "p")
    usual = parse_policy("version: 1\nmodels: {drafter: {activations: float}}\n", "p")
    assert cache_file(rounded) != cache_file(POLICY) == cache_file(usual)
    assert history_file(POLICY) != cache_file(POLICY)


@pytest.mark.parametrize("content", ["", "not JSON", "[]", "{}", "null", "[" * 10_000, '"\\ud800"'])
def test_a_file_that_says_nothing_sensible_is_damaged(content: str) -> None:
    file = cache_file(POLICY)
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert read_measurement(file) == Unusable("is damaged")


@pytest.mark.parametrize(
    "change_",
    [
        {"step_s": -1},
        {"step_s": "fast"},
        {"step_s": 1e9},
        {"step_s": float("nan")},
        {"step_s": float("inf")},
        {"step_s": None},
        {"more": 1},
    ],
)
def test_costs_that_cannot_be_are_damage(change_: dict[str, Any]) -> None:
    assert change(costs=costs(**change_)) == Unusable("is damaged")


def test_costs_that_are_incomplete_are_damage() -> None:
    some = costs()
    del some["step_s"]
    assert change(costs=some) == Unusable("is damaged")
    assert change(costs=[]) == Unusable("is damaged")
    assert change(method="guessed") == Unusable("is damaged")
    assert change(measured_at=5) == Unusable("is damaged")


def test_other_hardware_and_later_formats_are_named() -> None:
    found = change(hardware="abacus")
    assert isinstance(found, Unusable)
    assert "other hardware: abacus" in found.reason
    found = change(version=2)
    assert isinstance(found, Unusable)
    assert "format '2'" in found.reason


def test_a_huge_file_is_not_read() -> None:
    file = cache_file(POLICY)
    file.parent.mkdir(parents=True)
    file.write_text(" " * (MAX_BYTES + 1))
    found = read_measurement(file)
    assert found == Unusable(f"cannot be read: larger than {MAX_BYTES} bytes, the limit")


def test_a_pipe_or_a_device_is_no_measurement() -> None:
    file = cache_file(POLICY)
    file.parent.mkdir(parents=True)
    os.mkfifo(file)
    assert read_measurement(file) == Unusable("cannot be read: not a regular file")
    file.unlink()
    file.symlink_to("/dev/zero")
    assert read_measurement(file) == Unusable("cannot be read: not a regular file")


def test_a_folder_in_its_place_is_no_measurement() -> None:
    cache_file(POLICY).mkdir(parents=True)
    found = read_measurement(cache_file(POLICY))
    assert isinstance(found, Unusable)
    assert "cannot be read" in found.reason
    assert not write_measurement(cache_file(POLICY), MEASURED, POLICY)
    assert [path.name for path in cache_file(POLICY).parent.iterdir()] == [cache_file(POLICY).name]


def test_what_other_machines_left_is_named() -> None:
    file = cache_file(POLICY)
    assert others(file, POLICY) == []
    change(hardware="abacus")
    file.rename(file.with_name("0.json"))
    (file.parent / "1.json").write_text("damaged")
    write_measurement(file.with_name("2.json"), MEASURED, POLICY)
    history_file(POLICY).write_text("{}")
    write_measurement(file, MEASURED, POLICY)
    assert others(file, POLICY) == ["abacus", "other versions"]
    assert others(file, parse_policy("version: 1\nmodels: {refiner: null}\n", "p")) == []


def test_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file.json"
    texts = [str(number) * 10_000 for number in range(8)]

    def write(text: str) -> None:
        for _ in range(20):
            assert write_atomically(file, text)

    threads = [Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_text() in texts
    assert [path.name for path in file.parent.iterdir()] == ["file.json"]


def test_a_place_that_cannot_be_written_is_known(tmp_path: Path) -> None:
    (tmp_path / "in the way").write_text("")
    assert is_writable(tmp_path / "a" / "b.json")
    assert not is_writable(tmp_path / "in the way" / "b.json")
    assert not write_atomically(tmp_path / "in the way" / "b.json", "x")


def test_hardware_has_a_name() -> None:
    assert hardware() == hardware() != ""
