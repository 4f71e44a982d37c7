"""`hybrid calibrate`: costs that are kept whole or not at all."""

import json
import os
import stat
from pathlib import Path

import pytest

from hybrid.cli import main
from hybrid.policies.history import History
from hybrid.policies.loader import load_policy
from hybrid.policies.measurements import (
    Measurement,
    cache_file,
    history_file,
    read_measurement,
)

pytestmark = pytest.mark.serial


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_costs_and_work_are_measured_and_used(capsys: pytest.CaptureFixture[str]) -> None:
    file = cache_file(load_policy("balanced"))
    file.parent.mkdir(parents=True)
    file.write_text("damaged")
    assert main(["doctor"]) == 0
    assert "is damaged" in capsys.readouterr().out

    assert main(["calibrate", "--minutes", "0.02", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["file"] == str(file)
    assert "is damaged: replaced" in said["before"]
    assert all(0 < part["p50_s"] <= part["p95_s"] for part in said["parts"].values())
    kept = read_measurement(file)
    assert isinstance(kept, Measurement)
    assert kept.method == "calibrated"
    learned = History(kept.costs, history_file(load_policy("balanced")))
    assert learned.requests == said["requests"] > 0
    assert stat.S_IMODE(file.stat().st_mode) & 0o400

    assert main(["doctor"]) == 0
    assert "calibrated on" in capsys.readouterr().out


def test_a_table_for_people(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nmodels: {drafter: null}\ndefaults: {refine: {mode: generate}}\n")
    assert main(["calibrate", "--policy", str(policy), "--minutes", "0.01"]) == 0
    out = capsys.readouterr().out
    assert "refiner writes a token" in out
    assert "denoising step" not in out
    assert "calibrated on" in out


@pytest.mark.parametrize("minutes", ["0", "-1", "61", "nan", "inf"])
def test_minutes_are_checked(minutes: str, capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    assert main(["calibrate", f"--minutes={minutes}"]) == 2
    assert "--minutes" in capsys.readouterr().err
    assert [*cache.iterdir()] == []


def test_a_policy_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--policy", "balancd"]) == 2
    assert "balancd" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_said_before_measuring(
    cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (cache / "hybrid").write_text("in the way")
    assert main(["calibrate"]) == 1
    error = capfd.readouterr().err
    assert os.strerror(13) in error
    assert "hybrid" in error


def test_measured_on_other_hardware_only_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    file = cache_file(load_policy("balanced"))
    file.parent.mkdir(parents=True)
    models = load_policy("balanced").models.model_dump()
    other = {"models": models, "hardware": "abacus"}
    file.with_name("0.json").write_text(json.dumps(other))
    assert main(["doctor", "--json"]) == 0
    assert "measured for abacus only" in capsys.readouterr().out
    file.write_text(json.dumps({"version": 1, **other}))
    assert main(["doctor", "--json"]) == 0
    assert "other hardware" in capsys.readouterr().out
