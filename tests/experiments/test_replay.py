"""Policies scored without running them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hybrid.cli import main
from hybrid.experiments.derive import as_cascade, find
from hybrid.experiments.records import read_records, settings_key
from hybrid.experiments.replay import find_paces, replay_policy, replay_records
from hybrid.experiments.summary import read_results
from hybrid.policies.loader import load_policy, parse_policy
from tests.experiments.conftest import TEXT

Run = Callable[..., Path]
HEAD = "version: 1\n"
NEW = """
version: 1
defaults: {draft: {max_denoising_steps: [2, 8]}, refine: {mode: [none, generate]}}
tasks: {add: {draft: {max_denoising_steps: 2}, refine: {mode: none}}}
"""


def test_an_arm_that_was_run_is_replayed_exactly(run_small: Run) -> None:
    where = run_small()
    policy = parse_policy(
        HEAD + "defaults: {draft: {max_denoising_steps: 2}, refine: {mode: verify}}\n", "p"
    )
    replayed = replay_policy(where, policy)
    recorded = {r.pair_key: r for r in read_records(where) if r.condition == "verify"}
    assert replayed.accuracy == 1.0
    assert set(replayed.keys) == set(recorded)
    assert sorted(replayed.seconds) == sorted(record.seconds for record in recorded.values())
    assert not replayed.missing
    assert replayed.plans == {"2 steps + verify": 6}
    assert all(second > 0 for second in replayed.predicted)


def test_thresholds_matter_only_to_modes_that_read_them(run_small: Run) -> None:
    where = run_small()
    same = "{draft: {max_denoising_steps: 4}, refine: {mode: none, min_token_logprob: -9}}"
    assert not replay_policy(where, parse_policy(f"{HEAD}defaults: {same}\n", "p")).missing
    other = "{draft: {max_denoising_steps: 4, entropy_bound: 0.3}, refine: {mode: none}}"
    found = replay_policy(where, parse_policy(f"{HEAD}defaults: {other}\n", "p"))
    assert found.missing == {"4 steps": 6}


def test_what_was_never_run_is_missing_and_said(run_small: Run) -> None:
    policy = parse_policy(HEAD + "defaults: {draft: {max_denoising_steps: 3}}\n", "p")
    replayed = replay_policy(run_small(), policy)
    assert (len(replayed.scores), replayed.missing) == (0, {"3 steps": 6})


def test_a_policy_that_was_changed_leaves_its_old_records_behind(run_small: Run) -> None:
    where = run_small()
    assert run_small(TEXT.replace("[1, 2, 4]", "[1, 2]")) == where
    results = read_results(where)
    assert results.outdated == 6
    assert len(results.everything) == 24
    run_small(TEXT.replace("steps: 2}, refine: {mode: verify", "steps: 1}, refine: {mode: verify"))
    results = read_results(where)
    assert {record.max_steps for record in results.records["verify"]} == {1}
    assert results.outdated == 6


def test_an_item_that_was_changed_leaves_its_old_records_behind(
    run_small: Run, folder: Path
) -> None:
    where, items = run_small(), folder / "items.jsonl"
    items.write_text(items.read_text().replace("oneoneone", "one"))
    run_small()
    results = read_results(where)
    assert results.outdated == 5
    assert {r.reference for r in results.everything if r.prompt == "say one"} == {"one"}


def test_a_replay_agrees_with_a_fresh_run(conditions: Path, tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(NEW)
    experiment = "version: 1\ntasks: {embedded: [list, question, add], items: 30}\n"
    (tmp_path / "fresh.yaml").write_text(experiment + "policies: {new: new.yaml}\n")
    command = ["experiment", "run", str(tmp_path / "fresh.yaml"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    fresh = [record.score or 0.0 for record in read_records(tmp_path / "out")]
    replayed = replay_policy(conditions, load_policy(tmp_path / "new.yaml"))
    assert not replayed.missing
    low, high = replayed.interval
    assert len(replayed.scores) == len(fresh) == 90
    assert low <= sum(fresh) / len(fresh) <= high


def test_the_pace_at_a_request_is_that_of_the_requests_before_it(conditions: Path) -> None:
    results = read_results(conditions)
    ordered = sorted(results.everything, key=lambda record: record.started)
    slow_from = len(ordered) * 4 // 5
    alike = [
        replace(
            record, started=n / 1000, seconds=0.01 if n < slow_from else 0.03,
            prompt_tokens=10, draft_tokens=0, canvases=(), passes=5,
        )
        for n, record in enumerate(ordered)
    ]  # fmt: skip
    paces = find_paces(results, alike)
    before = [paces[record.pair_key] for record in alike[slow_from // 2 : slow_from]]
    assert before == pytest.approx([before[0]] * len(before), rel=0.001)
    assert paces[alike[-1].pair_key] == pytest.approx(3 * before[0], rel=0.02)


def test_a_policy_takes_less_time_where_the_machine_was_slow(conditions: Path) -> None:
    results = read_results(conditions)
    text = f"{HEAD}defaults: {{budget: 20ms, draft: {{max_denoising_steps: [2, 8]}}}}\n"
    policy = parse_policy(text, "p")

    def plans(pace: float) -> dict[str, int]:
        paces = dict.fromkeys((record.pair_key for record in results.everything), pace)
        return replay_records(results, results.everything, policy, paces).plans

    assert plans(1e-3) == {"8 steps": 90}
    assert plans(1e6) == {"2 steps": 90}


def test_a_cascade_is_worked_out_of_verify_as_if_it_had_been_run(conditions: Path) -> None:
    results = read_results(conditions)
    verified = {record.pair_key: record for record in results.records["verify"]}
    cascaded = results.records["cascade"]
    threshold = load_policy("balanced").defaults.refine.min_token_logprob
    assert len(cascaded) == 90
    for run in cascaded:
        made = as_cascade(verified[run.pair_key], None, threshold)
        assert made is not None
        assert (made.text, made.score, made.passes) == (run.text, run.score, run.passes)
    assert 0 < sum(bool(record.is_accepted) for record in cascaded) < 90


@pytest.mark.parametrize("threshold", [-0.5, -2.0, -9.0])
def test_any_threshold_can_be_replayed(conditions: Path, threshold: float) -> None:
    refine = f"{{mode: cascade, min_token_logprob: {threshold}}}"
    text = f"{HEAD}defaults: {{draft: {{max_denoising_steps: 8}}, refine: {refine}}}\n"
    found = replay_policy(conditions, parse_policy(text, "p"))
    assert not found.missing
    assert (len(found.scores), found.derived) == (90, 90)
    assert found.accuracy > 0.9 or threshold == -9.0


def test_a_draft_alone_is_worked_out_of_verify(run_small: Run) -> None:
    where = run_small()
    record = next(r for r in read_results(where).records["verify"])
    assert record.settings is not None
    alone = {**record.settings, "refine": {"mode": "none"}, "refiner": None}
    made = find({settings_key(record.settings): record}, alone)
    assert made is not None
    assert (made.text, made.score) == (record.draft_text, record.draft_score)
    assert made.seconds == pytest.approx(record.seconds - record.refine_s)
    assert find({settings_key(record.settings): record}, {**alone, "max_new_tokens": 3}) is None


def test_the_command_replays_and_names_what_is_missing(
    conditions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "other.yaml").write_text(HEAD + "defaults: {draft: {max_denoising_steps: 5}}\n")
    command = ["experiment", "replay", str(conditions), "--policy", "refiner_only"]
    assert main([*command, "--policy", str(tmp_path / "other.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "AR alone: 90" in shown
    assert "latency-*.json" not in shown
    assert "5 steps was never run (90 requests)" in shown
    assert '{"draft": {"max_denoising_steps": 5}, "refine": {"mode": "none"}}' in shown


def test_a_replay_says_if_nothing_was_learned_of_latency(
    run_small: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    where = run_small()
    (learned,) = where.glob("latency-*.json")
    learned.unlink()
    assert main(["experiment", "replay", str(where), "--policy", "refiner_only"]) == 0
    assert "no latency-*.json, which a run writes as it ends" in capsys.readouterr().out
