"""Policies scored without running them, and policies fitted to records."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hybrid.cli import main
from hybrid.errors import CheckpointError
from hybrid.experiments.derive import as_cascade, find
from hybrid.experiments.fit import Plan, _freedom, against_presets, fit, halves, within
from hybrid.experiments.records import read_records, settings_key
from hybrid.experiments.replay import replay_policy
from hybrid.experiments.summary import read_results
from hybrid.policies.loader import load_policy, parse_policy
from tests.experiments.conftest import TEXT

Run = Callable[..., Path]
HEAD = "version: 1\n"
ARMS = """
version: 1
name: arms
tasks: {embedded: [list, question, add], items: 30}
policies:
  draft:
    inline: {defaults: {refine: {mode: none}}}
    vary: {defaults.draft.max_denoising_steps: [2, 8]}
  verify: {inline: {defaults: {draft: {max_denoising_steps: 8}, refine: {mode: verify}}}}
  cascade: {inline: {defaults: {draft: {max_denoising_steps: 8}, refine: {mode: cascade}}}}
  refiner: {inline: {defaults: {refine: {mode: generate}}}}
"""
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
    recorded = {r.place: r for r in read_records(where) if r.arm == "verify"}
    assert replayed.accuracy == 1.0
    assert set(replayed.places) == set(recorded)
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
    assert {record.cap for record in results.records["verify"]} == {1}
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


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded pair under every arm, run by the command."""
    folder = tmp_path_factory.mktemp("arms")
    (folder / "arms.yaml").write_text(ARMS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert main(["experiment", "run", str(folder / "arms.yaml"), "--out", str(folder)]) == 0
    return folder


def test_a_replay_agrees_with_a_fresh_run(arms: Path, tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(NEW)
    experiment = "version: 1\ntasks: {embedded: [list, question, add], items: 30}\n"
    (tmp_path / "fresh.yaml").write_text(experiment + "policies: {new: new.yaml}\n")
    command = ["experiment", "run", str(tmp_path / "fresh.yaml"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    fresh = [record.score or 0.0 for record in read_records(tmp_path / "out")]
    replayed = replay_policy(arms, load_policy(tmp_path / "new.yaml"))
    assert not replayed.missing
    low, high = replayed.interval
    assert len(replayed.scores) == len(fresh) == 90
    assert low <= sum(fresh) / len(fresh) <= high


def test_a_cascade_is_worked_out_of_verify_as_if_it_had_been_run(arms: Path) -> None:
    results = read_results(arms)
    verified = {record.place: record for record in results.records["verify"]}
    cascaded = results.records["cascade"]
    threshold = load_policy("balanced").defaults.refine.min_token_logprob
    assert len(cascaded) == 90
    for run in cascaded:
        made = as_cascade(verified[run.place], None, threshold)
        assert made is not None
        assert (made.text, made.score, made.passes) == (run.text, run.score, run.passes)
    assert 0 < sum(bool(record.is_accepted) for record in cascaded) < 90


@pytest.mark.parametrize("threshold", [-0.5, -2.0, -9.0])
def test_any_threshold_can_be_replayed(arms: Path, threshold: float) -> None:
    refine = f"{{mode: cascade, min_token_logprob: {threshold}}}"
    text = f"{HEAD}defaults: {{draft: {{max_denoising_steps: 8}}, refine: {refine}}}\n"
    found = replay_policy(arms, parse_policy(text, "p"))
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
    arms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "other.yaml").write_text(HEAD + "defaults: {draft: {max_denoising_steps: 5}}\n")
    command = ["experiment", "replay", str(arms), "--policy", "refiner_only"]
    assert main([*command, "--policy", str(tmp_path / "other.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "AR alone: 90" in shown
    assert "5 steps was never run (90 requests)" in shown
    assert '{"draft": {"max_denoising_steps": 5}, "refine": {"mode": "none"}}' in shown


def test_the_fitted_policy_is_valid_and_holds_what_was_measured(
    arms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fitted.yaml"
    assert main(["fit", str(arms), "-o", str(out)]) == 0
    policy = load_policy(out)
    assert set(policy.tasks) == {"list", "question", "add"}
    fitting, _ = halves(read_results(arms).everything)
    mine = [r.score or 0.0 for r in fitting if r.task == "question" and r.mode == "generate"]
    believed = (sum(mine) + 2 * 0.92) / (len(mine) + 2)  # the prior counts as two answers
    assert policy.quality["question"].refiner == pytest.approx(believed, abs=1e-4)
    assert set(policy.quality["list"].draft) == {2, 8}
    assert policy.quality["list"].steps_used[2] <= 2
    assert "generate" in (policy.tasks["question"].refine.mode or ())
    shown = capsys.readouterr().out
    assert "refiner_only" in shown and "second half" in shown


def test_the_fitted_policy_is_reported_on_the_other_half(arms: Path) -> None:
    results = read_results(arms)
    fitted = fit(results)
    rivals = {rival.name: rival for rival in against_presets(results, fitted)}
    rival = rivals["refiner_only"]
    assert rival.pairs > 30
    odd = {place for place in rival.fitted.places}
    assert all(item % 2 == 1 for _, item, _, _ in odd)
    assert rival.interval[0] <= rival.difference <= rival.interval[1]
    assert within(fitted, 0.05).defaults.budget == pytest.approx(0.05)


def test_the_report_says_why_the_fitted_policy_is_not_better(arms: Path) -> None:
    results = read_results(arms)
    rivals = {rival.name: rival for rival in against_presets(results, fit(results))}
    alone = rivals["refiner_only"]
    assert alone.preset.accuracy == 1.0
    assert alone.verdict.startswith("as good: neither is ever wrong of 45; median")
    assert alone.fitted.latency(0.95) <= alone.limit_s
    unsure = replace(alone, difference=0.02, interval=(-0.01, 0.05))
    assert unsure.verdict.startswith("not told apart: 45 pairs show differences from about")
    assert replace(alone, interval=(0.01, 0.05)).verdict == "better"
    assert replace(alone, difference=-0.1, interval=(-0.2, -0.05)).verdict.startswith("worse")
    assert replace(alone, pairs=0).verdict.startswith("not compared")


def test_what_the_planner_may_combine_was_measured() -> None:
    plans: dict[Plan, None] = {(1, "none"): None, (None, "generate"): None}
    plans |= {(4, "none"): None, (4, "verify"): None, (8, "none"): None, (8, "verify"): None}
    front: list[Plan] = [(1, "none"), (8, "none"), (8, "verify"), (None, "generate")]
    assert _freedom(front, plans) == (["none", "verify", "generate"], [8])
    only: list[Plan] = [(1, "none"), (4, "cascade")]
    assert _freedom(only, plans) == (["none"], [1, 4])


def test_a_fit_needs_drafts_and_the_refiner_alone(run_small: Run) -> None:
    text = "version: 1\ntasks: {file: items.jsonl}\npolicies: {only: {inline: {}}}\n"
    with pytest.raises(CheckpointError, match="answers of the refiner alone"):
        fit(read_results(run_small(text)))
