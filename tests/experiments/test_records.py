"""Folders of records that something else has written: an error with file and line, or dropped."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid.cli import main
from hybrid.errors import BackendError, CheckpointError
from hybrid.experiments.records import (
    MANIFEST,
    RECORDS,
    read_manifest,
    read_records,
    recording,
)

Run = Callable[..., Path]
DEEP = "[" * 100_000 + "]" * 100_000


def commands(folder: Path) -> list[list[str]]:
    return [
        ["experiment", "report", str(folder)],
        ["experiment", "replay", str(folder), "--policy", "fast"],
        ["fit", str(folder), "-o", str(folder / "fitted.yaml")],
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seconds", "x"), ("seconds", -1), ("seconds", None), ("task", ["a"]), ("item", "first"),
        ("item", -1), ("seed", 1.5), ("score", "good"), ("canvases", [[1]]), ("canvases", 3),
        ("settings", [1]), ("mode", "refine"), ("notes", "text"), ("tokens", [1]), ("text", 3),
        ("messages", [{"role": "robot", "content": ""}]), ("metadata", []), ("prompt", None),
        ("version", {}), ("min_logprob", "low"), ("budget_s", "1s"),
    ],
)  # fmt: skip
def test_a_field_of_another_kind_is_named_with_its_line(
    run_small: Run, field: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    where = run_small()
    lines = (where / RECORDS).read_text().splitlines()
    lines[3] = json.dumps({**json.loads(lines[3]), field: value})
    (where / RECORDS).write_text("\n".join(lines))
    with pytest.raises(CheckpointError, match=rf"{RECORDS}:4: no record: {field}"):
        read_records(where)
    for command in commands(where):
        assert main(command) == 2
        assert f"{RECORDS}:4: no record: {field}" in capsys.readouterr().err


@pytest.mark.parametrize("line", [DEEP, '{"key": NaN', "\xff", "", "{}{}"])
def test_a_line_that_is_no_json_is_dropped(run_small: Run, line: str) -> None:
    where = run_small()
    before = read_records(where)
    with (where / RECORDS).open("a", encoding="latin-1") as stream:
        stream.write(line + "\n")
    assert read_records(where) == before


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_number_that_is_none_is_no_duration(run_small: Run, number: str) -> None:
    where = run_small()
    line = json.dumps({**json.loads((where / RECORDS).read_text().splitlines()[0]), "seconds": 7.5})
    (where / RECORDS).write_text(line.replace("7.5", number))
    with pytest.raises(CheckpointError, match="seconds"):
        read_records(where)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("conditions", None), ("conditions", [3]), ("conditions", [{"name": "x"}]), ("items", []),
        ("items", {"a": 3}), ("experiment", None), ("experiment", {"name": 3}), ("costs", []),
        ("costs", {"x": []}), ("baseline", []), ("text", 3), ("format", 99), ("format", None),
    ],
)  # fmt: skip
def test_a_manifest_of_another_kind_is_named(
    run_small: Run, key: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    where = run_small()
    (where / MANIFEST).write_text(json.dumps({**read_manifest(where), key: value}))
    for command in commands(where):
        assert main(command) == 2
        assert f"{MANIFEST}: " in capsys.readouterr().err


@pytest.mark.parametrize("text", [DEEP, "[]", "3", "{oops", "", '{"format": ' + DEEP + "}"])
def test_a_manifest_that_is_none_is_an_error(run_small: Run, text: str) -> None:
    where = run_small()
    (where / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=MANIFEST):
        read_manifest(where)


@pytest.mark.parametrize("name", [MANIFEST, RECORDS])
def test_pipes_and_devices_are_no_records(run_small: Run, name: str) -> None:
    where = run_small()
    manifest = read_manifest(where)
    for make in (os.mkfifo, lambda file: file.symlink_to("/dev/zero")):
        (where / name).unlink()
        make(where / name)
        with pytest.raises(CheckpointError, match=name):
            read_manifest(where), read_records(where)
    if name == RECORDS:
        with pytest.raises(BackendError, match="regular"), recording(where, manifest):
            pass


def test_what_unpacks_without_end_is_refused(
    run_small: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = run_small()
    (where / RECORDS).unlink()
    (where / f"{RECORDS}.gz").write_bytes(gzip.compress(bytes(1 << 20)))
    monkeypatch.setattr("hybrid.experiments.records.MAX_BYTES", 1 << 16)
    with pytest.raises(CheckpointError, match="limit"):
        read_records(where)
