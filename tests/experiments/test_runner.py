"""Running: everything once, recorded at once, resumed after any end, and never by two at a time."""

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hybrid.backends import Models
from hybrid.cli import main
from hybrid.errors import BackendError, CheckpointError
from hybrid.experiments.definition import Load
from hybrid.experiments.records import (
    RECORDS,
    Record,
    Recorder,
    read_manifest,
    read_records,
    recording,
)
from hybrid.experiments.summary import read_results
from tests.experiments.conftest import ANSWERS, TEXT, scripted_models

Run = Callable[..., Path]
TRIALS = 5 * len(ANSWERS)


def test_every_policy_answers_every_item_with_the_same_seeds(run_small: Run) -> None:
    records = read_records(run_small())
    assert len(records) == TRIALS
    by_condition: dict[str, list[Record]] = {}
    for record in records:
        by_condition.setdefault(record.condition, []).append(record)
    assert len(by_condition) == 5
    keys = [{record.pair_key for record in found} for found in by_condition.values()]
    assert all(one == keys[0] for one in keys)
    assert all(record.error is None and record.score is not None for record in records)
    assert all(record.score == 1 for record in by_condition["verify"] + by_condition["refiner"])
    assert all(record.is_right for record in by_condition["draft max_denoising_steps=4"])
    assert not any(record.is_right for record in by_condition["draft max_denoising_steps=1"])


def test_a_record_says_what_was_done(run_small: Run) -> None:
    record = next(r for r in read_records(run_small()) if r.condition == "verify")
    assert (record.max_steps, record.mode, record.label) == (2, "verify", "2 steps + verify")
    assert record.settings is not None
    assert record.settings["refine"] == {"mode": "verify", "temperature": 0.0}
    assert (record.draft_score, record.score) == (0.0, 1.0)
    assert record.steps == 2 and record.passes > 1 and record.seconds > 0
    assert record.canvases[0][0] == 2 and record.canvas_length == 64
    assert record.predicted_p50_s > 0 and record.draft_tokens == record.tokens


def test_a_second_run_makes_nothing_again(run_small: Run) -> None:
    file = run_small() / RECORDS
    before = file.read_bytes()
    assert run_small() / RECORDS == file
    assert len(file.read_bytes().splitlines()) == 2 * TRIALS  # the CLI leaves out what is known
    assert len(read_records(file.parent)) == TRIALS
    assert file.read_bytes().startswith(before)


@pytest.mark.parametrize("load", [Load(clients=4), Load(rate=500.0)])
def test_requests_may_overlap(run_small: Run, load: Load) -> None:
    records = read_records(run_small(load=load))
    assert len(records) == TRIALS
    assert all(record.error is None for record in records)


def test_a_line_that_was_cut_is_dropped_and_written_anew(run_small: Run) -> None:
    where = run_small()
    lines = (where / RECORDS).read_bytes().splitlines(keepends=True)
    (where / RECORDS).write_bytes(b"".join(lines[:7]) + lines[7][: len(lines[7]) // 2])
    assert len(read_records(where)) == 7
    with recording(where, read_manifest(where)) as recorder:
        recorder.add(read_records(where)[0])
        recorder.add(Record(**json.loads(lines[9])))
    assert len(read_records(where)) == 8


def test_packed_records_are_read_and_added_to(run_small: Run) -> None:
    where = run_small()
    before = read_records(where)
    packed = where / f"{RECORDS}.gz"
    packed.write_bytes(gzip.compress((where / RECORDS).read_bytes()))
    (where / RECORDS).unlink()
    assert read_records(where) == before
    with recording(where, read_manifest(where)) as recorder:
        recorder.add(replace(before[0], text="again"))
    assert read_records(where)[0].text == "again"
    assert len(read_records(where)) == TRIALS
    packed.write_bytes(b"no gzip")
    with pytest.raises(CheckpointError, match="cannot be read: Not a gzipped file"):
        read_records(where)


def test_two_runs_on_one_folder_are_refused(tmp_path: Path) -> None:
    with (
        recording(tmp_path / "out", {}),
        pytest.raises(BackendError, match="another run writes there"),
        recording(tmp_path / "out", {}),
    ):
        pass


def test_a_full_disk_stops_the_run_and_keeps_what_is_there(run_small: Run) -> None:
    where = run_small()
    record = read_records(where)[0]

    class Full:
        name = str(where / RECORDS)

        def __init__(self, room: int) -> None:
            self.stream, self.room = (where / RECORDS).open("ab", buffering=0), room

        def fileno(self) -> int:
            return self.stream.fileno()

        def write(self, data: bytes) -> int:
            if self.room == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.stream.write(data[: self.room])

        def truncate(self, size: int) -> int:
            return self.stream.truncate(size)

    before = (where / RECORDS).read_bytes()
    for room in (0, 40):
        full: Any = Full(room)
        with pytest.raises(BackendError, match="No space left on device; run again to go on"):
            Recorder(full).add(record)
        assert (where / RECORDS).read_bytes() == before


def test_records_of_another_version_are_left_out_and_said(run_small: Run) -> None:
    where = run_small()
    with recording(where, read_manifest(where)) as recorder:
        recorder.add(replace(read_records(where)[0], key="old", version="0.0.1", score=0.0))
    results = read_results(where)
    assert results.of_other_versions == 1
    assert len(results.everything) == TRIALS


def test_what_is_no_experiment_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is this an experiment's folder"):
        read_results(tmp_path)
    (tmp_path / "experiment.json").write_text('{"format": 99}')
    with pytest.raises(CheckpointError, match="format 99; this version reads 1"):
        read_manifest(tmp_path)


def raising(prompt: str, reference: str, text: str) -> float:
    if "two" in prompt:
        raise ZeroDivisionError("my scorer broke")
    return 1.0


def test_a_scorer_that_raises_is_recorded_and_not_fatal(run_small: Run) -> None:
    wanted = f"{{file: items.jsonl, scorer: '{__name__}:raising'}}"
    text = TEXT.replace("{file: items.jsonl}", wanted)
    records = read_records(run_small(text))
    broken = [record for record in records if record.score_error]
    assert len(records) == TRIALS and len(broken) == 5
    assert broken[0].score is None
    assert broken[0].score_error == "ZeroDivisionError: my scorer broke"


BROKEN = {"is": True}


def leaving(prompt: str, reference: str, text: str) -> float:
    if BROKEN["is"]:
        sys.exit("this scorer was written as a program")
    return 1.0


def test_what_could_not_be_judged_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybrid.experiments.runner.load_models", scripted_models)
    wanted = f"{{file: items.jsonl, scorer: '{__name__}:leaving'}}"
    (folder / "small.yaml").write_text(TEXT.replace("{file: items.jsonl}", wanted))
    command = ["experiment", "run", str(folder / "small.yaml"), "--out", str(folder / "out")]
    monkeypatch.setitem(BROKEN, "is", True)
    assert main(command) == 0
    broken = read_records(folder / "out")
    assert {one.score_error for one in broken} == {
        "SystemExit: this scorer was written as a program"
    }
    monkeypatch.setitem(BROKEN, "is", False)
    assert main(command) == main(command) == 0
    assert {one.score for one in read_records(folder / "out")} == {1.0}
    assert len((folder / "out" / RECORDS).read_bytes().splitlines()) == 2 * TRIALS


def test_what_another_run_records_while_models_are_loaded_is_not_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "small.yaml").write_text(TEXT)
    command = ["experiment", "run", str(folder / "small.yaml"), "--out", str(folder / "out")]
    loaded: list[object] = []

    def load(*chosen: Any) -> Models:
        loaded.append(chosen)
        if len(loaded) == 1:
            assert main(command) == 0  # the other run, from its beginning to its end
        return scripted_models(*chosen)

    monkeypatch.setattr("hybrid.experiments.runner.load_models", load)
    assert main(command) == 0
    assert len(loaded) == 2
    assert len((folder / "out" / RECORDS).read_bytes().splitlines()) == TRIALS


def test_a_request_that_fails_is_recorded_and_made_again(run_small: Run, folder: Path) -> None:
    with (folder / "items.jsonl").open("a") as stream:
        stream.write('{"prompt": "unknown", "reference": "x", "task": "a"}\n')
    where = run_small()
    failed = [record for record in read_records(where) if record.error]
    assert len(failed) == 5
    assert "RequestError" in (failed[0].error or "")


def test_likelihood_is_the_refiners(run_small: Run) -> None:
    text = TEXT.replace("{file: items.jsonl}", "{file: items.jsonl, scorer: likelihood}")
    records = read_records(run_small(text))
    sure = [record.score for record in records if record.condition == "refiner"]
    assert all(score == pytest.approx(0.9048, abs=1e-3) for score in sure)  # exp(-0.1)
    wrong = [r.score for r in records if r.condition == "draft max_denoising_steps=1"]
    assert all(score is not None and score < 0.1 for score in wrong)


EMBEDDED = """
version: 1
name: killed
tasks: {{embedded: [add, sort, translate], items: {items}, scorer: "counting:counted"}}
policies:
  draft: {{inline: {{defaults: {{draft: {{max_denoising_steps: 2}}, refine: {{mode: none}}}}}}}}
  refiner: {{inline: {{defaults: {{refine: {{mode: generate}}}}}}}}
load: {load}
"""
COUNTING = """
import os
from hybrid.experiments.scorers import embedded

def counted(prompt, reference, text):
    with open(os.environ["COUNTED"], "a") as stream:
        stream.write("x")
    return embedded(prompt, reference, text)
"""
WARMED = 2  # requests that are answered and not recorded, one a policy


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to which the scorer of `EMBEDDED` adds a byte for each request that was answered."""
    (tmp_path / "counting.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(str(tmp_path))
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("COUNTED", str(tmp_path / "counted"))
    monkeypatch.delitem(sys.modules, "counting", raising=False)
    return tmp_path / "counted"


def stop_in_mid_run(file: Path, out: Path, number: signal.Signals) -> tuple[int, str]:
    """Send a signal to a run that has recorded a few requests; its exit code and stderr."""
    code = "import sys; from hybrid.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "experiment", "run", str(file), "--out", str(out)]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and run.poll() is None:
        if (out / RECORDS).is_file() and (out / RECORDS).read_bytes().count(b"\n") >= 20:
            break
        time.sleep(0.005)
    run.send_signal(number)
    return run.wait(200), run.communicate()[1]


@pytest.mark.parametrize("clients", [1, 4])
def test_kill_9_loses_at_most_one_request_of_each_client(
    tmp_path: Path, counted: Path, clients: int
) -> None:
    file, out = tmp_path / "killed.yaml", tmp_path / "out"
    file.write_text(EMBEDDED.format(items=40, load=f"{{clients: {clients}}}"))
    stop_in_mid_run(file, out, signal.SIGKILL)
    survived = {record.key: record for record in read_records(out)}
    assert 20 <= len(survived) < 240
    assert 0 <= len(counted.read_bytes()) - WARMED - len(survived) <= clients
    assert main(["experiment", "run", str(file), "--out", str(out)]) == 0
    after = {record.key: record for record in read_records(out)}
    assert len(after) == 240
    assert all(after[key] == record for key, record in survived.items())
    lines = (out / RECORDS).read_bytes().splitlines()
    assert len(lines) - 240 <= 1  # the line that was cut, if one was


def test_sigterm_stops_a_run_as_ctrl_c_does(tmp_path: Path, counted: Path) -> None:
    file, out = tmp_path / "stopped.yaml", tmp_path / "out"
    file.write_text(EMBEDDED.format(items=400, load="{clients: 2}"))
    code, said = stop_in_mid_run(file, out, signal.SIGTERM)
    assert (code, said.strip().splitlines()[-1]) == (130, "stopped")
    lines = (out / RECORDS).read_bytes().splitlines()
    assert 20 <= len(lines) == len(read_records(out)) < 2400
    (learned,) = out.glob("latency-*.json")
    assert json.loads(learned.read_text())


def test_load_changes_latency_and_no_answer_of_the_embedded_pair(
    tmp_path: Path, counted: Path
) -> None:
    answers = []
    for number, load in enumerate(("{clients: 1}", "{clients: 4}", "{rate: 200}")):
        file, out = tmp_path / f"{number}.yaml", tmp_path / f"out{number}"
        file.write_text(EMBEDDED.format(items=8, load=load))
        assert main(["experiment", "run", str(file), "--out", str(out)]) == 0
        records = sorted(read_records(out), key=lambda record: record.started)
        assert not any(record.error for record in records)
        overlap = [a.started + a.seconds > b.started for a, b in pairwise(records)]
        assert any(overlap) == (number > 0)
        answers.append({record.key: record.text for record in records})
    assert len(answers[0]) == 48
    assert answers[0] == answers[1] == answers[2]


def test_a_command_is_recorded_without_this_machines_folders(
    run_small: Run, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.chdir(folder)
    given = [str(folder / "a.yaml"), f"--out={folder / 'runs' / 'a'}", "--out", "/elsewhere/b"]
    monkeypatch.setattr(sys, "argv", ["hybrid", "experiment", "run", *given])
    assert read_manifest(run_small())["command"] == [
        "experiment", "run", "a.yaml", "--out=runs/a", "--out", "b",
    ]  # fmt: skip
