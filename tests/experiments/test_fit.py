"""Policies fitted to records, and compared with presets on what they were not fitted to."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hybrid.cli import main
from hybrid.errors import CheckpointError
from hybrid.experiments.fit import Plan, _allowed, fit, halves
from hybrid.experiments.preset_comparison import (
    PresetComparisons,
    _compare,
    compare_with_presets,
    equal_budget,
    within,
)
from hybrid.experiments.records import Record
from hybrid.experiments.replay import Replayed
from hybrid.experiments.summary import read_results
from hybrid.policies.loader import load_policy

Run = Callable[..., Path]


def test_the_fitted_policy_is_valid_and_holds_what_was_measured(
    conditions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fitted.yaml"
    assert main(["fit", str(conditions), "-o", str(out)]) == 0
    policy = load_policy(out)
    assert set(policy.tasks) == {"list", "question", "add"}
    fitting, _ = halves(read_results(conditions).everything)
    mine = [r.score or 0.0 for r in fitting if r.task == "question" and r.mode == "generate"]
    expected = (sum(mine) + 2 * 0.92) / (len(mine) + 2)  # the prior counts as two answers
    assert policy.quality["question"].refiner == pytest.approx(expected, abs=1e-4)
    assert set(policy.quality["list"].draft) == {2, 8}
    assert policy.quality["list"].steps_used[2] <= 2
    assert "generate" in (policy.tasks["question"].refine.mode or ())
    shown = capsys.readouterr().out
    assert "refiner_only" in shown and "second half" in shown


def test_the_fitted_policy_is_reported_on_the_other_half(conditions: Path) -> None:
    results = read_results(conditions)
    fitted = fit(results)
    presets = {
        comparison.name: comparison for comparison in compare_with_presets(results, fitted).compared
    }
    comparison = presets["refiner_only"]
    assert (comparison.requests, comparison.found.pairs) == (45, 45)
    assert comparison.ratio == pytest.approx(comparison.fitted.p95_s / comparison.preset.p95_s)
    assert comparison.ratio_interval[0] <= comparison.ratio <= comparison.ratio_interval[1]
    assert within(fitted, 0.05).defaults.budget == pytest.approx(0.05)


def test_nothing_is_chosen_by_the_half_that_is_reported(conditions: Path) -> None:
    """Other answers and latencies there change the report, and nothing that was chosen."""
    results = read_results(conditions)

    def other(record: Record) -> Record:
        if record.item % 2 == 0:
            return record
        slower = 5 if record.mode == "generate" else 2
        score = None if record.score is None else 1 - record.score
        return replace(record, seconds=slower * record.seconds, score=score)

    changed = replace(
        results,
        records={condition: [*map(other, found)] for condition, found in results.records.items()},
    )
    chosen, as_chosen = fit(results), fit(changed)
    assert chosen == as_chosen
    presets, as_reported = (
        compare_with_presets(results, chosen),
        compare_with_presets(changed, chosen),
    )
    assert [one.budget_s for one in presets.compared] == [
        one.budget_s for one in as_reported.compared
    ]
    both = zip(presets.compared, as_reported.compared, strict=True)
    refiner, again = next(pair for pair in both if pair[0].name == "refiner_only")
    assert again.preset.p95_s == pytest.approx(5 * refiner.preset.p95_s)
    assert again.preset.accuracy == pytest.approx(1 - refiner.preset.accuracy)


def replayed(scores: list[float], seconds: list[float]) -> Replayed:
    keys = [("t", item, 0, 0) for item in range(len(scores))]
    return Replayed(keys, scores, seconds, seconds, scores, Counter(), Counter(), {}, 0, 0)


def test_the_budget_is_of_the_highest_expected_accuracy_within_the_limit_then_of_the_fastest() -> (
    None
):
    curve = {0.1: (0.5, 0.1), 0.2: (1.0, 0.2), 0.3: (1.0, 0.3)}
    assert equal_budget(0.35, curve) == 0.2
    assert equal_budget(0.15, curve) == 0.1
    assert equal_budget(0.05, curve) == 0.1


@pytest.mark.parametrize(
    ("fitted", "preset", "slower", "said"),
    [
        ([1.0] * 90 + [0.0] * 10, [1.0] * 60 + [0.0] * 40, 1.0, "better; p95 is 1.00 times"),
        ([1.0] * 90 + [0.0] * 10, [1.0] * 60 + [0.0] * 40, 0.5, r"better; .*\), faster$"),
        ([1.0] * 90 + [0.0] * 10, [1.0] * 60 + [0.0] * 40, 1.5, "slower, not compared at equal"),
        ([1.0] * 60 + [0.0] * 40, [1.0] * 90 + [0.0] * 10, 1.0, r"worse \(t -30 points\): "),
        ([1.0] * 100, [1.0] * 100, 1.0, "equal: no item of 100 differs, and 0 are wrong"),
        (
            [1.0] * 98 + [0.0] * 2,
            [1.0] * 98 + [0.0] * 2,
            1.0,
            "no item of 100 differs, and 2 are wrong",
        ),
        (
            [1.0] * 98 + [0.0] * 2,
            [1.0] * 97 + [0.0] * 3,
            1.0,
            "wrong on 3 of 100, too few to improve",
        ),
        (
            [1.0] * 71 + [0.0] * 29,
            [1.0] * 70 + [0.0] * 30,
            1.0,
            ": 1 items gained, 0 lost; 100 items can",
        ),
    ],
)
def test_the_verdict_says_why_the_fitted_policy_is_not_better(
    fitted: list[float], preset: list[float], slower: float, said: str
) -> None:
    seconds = [0.01 + 1e-4 * item for item in range(100)]
    mine = replayed(fitted, [slower * second for second in seconds])
    comparison = _compare("preset", 0.05, replayed(preset, seconds), mine)
    assert re.search(said, comparison.verdict), comparison.verdict
    assert comparison.is_better == (said.startswith("better"))


def test_a_p95_that_came_out_above_the_presets_is_said() -> None:
    """A tenth of the requests slower than the preset's: above, and within the uncertainty."""
    seconds = [0.01 + 1e-4 * item for item in range(100)]
    noise = np.random.default_rng(3).permutation(seconds)
    mine = replayed([1.0] * 100, [1.01 * float(second) for second in noise])
    verdict = _compare("preset", 0.05, replayed([1.0] * 100, seconds), mine).verdict
    assert re.search(r"1\.01 times .*, which includes 1$", verdict)


def test_a_preset_that_nobody_ran_is_not_left_out_in_silence(run_small: Run) -> None:
    results = read_results(run_small())
    with pytest.raises(CheckpointError):  # three items of a task are too few
        fit(results)
    presets = PresetComparisons([], {"fast": Counter({"8 steps": 3})})
    assert presets.verdicts == [
        "fast: not compared, no request has an answer under both; never run: 8 steps (3 requests)"
    ]


def test_what_the_planner_may_combine_was_measured() -> None:
    plans: dict[Plan, None] = {(1, "none"): None, (None, "generate"): None}
    plans |= {(4, "none"): None, (4, "verify"): None, (8, "none"): None, (8, "verify"): None}
    front: list[Plan] = [(1, "none"), (8, "none"), (8, "verify"), (None, "generate")]
    assert _allowed(front, plans) == (["none", "verify", "generate"], [8])
    assert _allowed([(2, "none"), (12, "none"), (4, "verify")], {**plans, (12, "none"): None}) == (
        ["none", "verify"], [4, 8],
    )  # fmt: skip
    only: list[Plan] = [(1, "none"), (4, "cascade")]
    assert _allowed(only, plans) == (["none"], [1, 4])


def test_a_fit_needs_drafts_and_the_refiner_alone(run_small: Run) -> None:
    text = "version: 1\ntasks: {file: items.jsonl}\npolicies: {only: {inline: {}}}\n"
    with pytest.raises(CheckpointError, match="answers of the refiner alone"):
        fit(read_results(run_small(text)))
