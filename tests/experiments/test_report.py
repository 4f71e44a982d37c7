"""Summaries, the report and its pictures."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from hybrid.errors import CheckpointError
from hybrid.experiments.grids import grid_lines
from hybrid.experiments.records import Record, read_records, recording
from hybrid.experiments.report import write_report
from hybrid.experiments.summary import (
    Summary,
    area_under_parallelism,
    comparisons,
    pareto,
    read_results,
    summarise,
)
from hybrid.experiments.tables import best_under, fastest_above
from tests.experiments.conftest import TEXT

Run = Callable[..., Path]


def record(**values: object) -> Record:
    usual: dict[str, object] = {
        "key": "k", "condition": "a", "policy": "d", "task": "t", "item": 0, "seed": 0,
        "repeat": 0, "prompt": "p", "reference": "r", "scorer": "exact", "started": 0.0,
        "score": 1.0, "seconds": 1.0,
    }  # fmt: skip
    return Record(**{**usual, **values})  # type: ignore[arg-type]


def test_a_summary_counts_everything_once() -> None:
    canvas = (4, True, 0.1)
    records = [
        record(draft_score=0.0, steps=4, passes=2, tokens=12, draft_tokens=8, canvases=(canvas,),
               canvas_length=32),
        record(draft_score=1.0, score=0.0, steps=4, tokens=20, draft_tokens=20, canvases=(canvas,),
               canvas_length=32, seconds=3.0, budget_s=2.0),
        record(draft_score=1.0, steps=2, tokens=10, draft_tokens=10,
               canvases=((2, False, 0.3),), canvas_length=32),
        record(score=None, score_error="broken", seconds=2.0),
        record(score=None, error="failed"),
    ]  # fmt: skip
    found = summarise("a", records)
    assert (found.count, found.failed, found.unscored) == (4, 1, 1)
    assert found.accuracy == 0.5  # two right of four that were scored or failed
    assert (found.fixes, found.harms, found.kept_right, found.kept_wrong) == (1, 1, 1, 0)
    assert found.tokens_per_forward == 42 / 12
    assert found.canvas_fill == 38 / 96
    assert found.converged == pytest.approx(2 / 3)
    assert found.steps_per_canvas == pytest.approx(10 / 3)
    assert found.in_time == 0.75
    assert found.seconds_per_right == 7.0 / 2


def test_the_front_holds_what_nothing_beats() -> None:
    def one(name: str, seconds: float, right: int) -> object:
        records = [record(seconds=seconds, score=float(n < right)) for n in range(10)]
        return summarise(name, records)

    summaries = [one("slow", 3, 9), one("worse", 2, 5), one("fast", 1, 6), one("equal", 4, 9)]
    assert [found.condition for found in pareto(summaries)] == ["fast", "slow"]  # type: ignore[arg-type]


def test_aup_by_hand() -> None:
    """1 x 80, then a trapezium whose right side counts exp(-3 (1 - 78 / 80)) of 78."""
    from math import exp

    expected = 1 * 80 + 0.5 * 2 * (80 + 78 * exp(-3 * (1 - 78 / 80)))
    assert area_under_parallelism([(1, 80), (3, 78)]) == pytest.approx(expected)
    assert area_under_parallelism([(1, 80), (3, 78), (9, 70)]) == pytest.approx(expected)
    assert area_under_parallelism([(2, 50)]) == 100
    assert area_under_parallelism([(2, 0)]) == 0


def test_policies_are_compared_with_the_baseline_pair_by_pair(run_small: Run) -> None:
    found = comparisons(read_results(run_small()))
    assert "refiner" not in found
    worst, p_accuracy, _ = found["draft max_denoising_steps=1"]
    assert (worst.pairs, worst.fixes, worst.harms) == (6, 0, 6)
    assert worst.difference == -1.0
    assert p_accuracy == pytest.approx(min(1.0, worst.p_accuracy * 4))


def test_the_report_is_one_page_with_its_pictures(run_small: Run) -> None:
    where = run_small()
    page = write_report(where).read_text("utf-8")
    assert not re.findall(r'(?:src|href|srcset)="(?!data:)', page)
    assert "http" not in re.sub(r'"data:[^"]*"', "", page)
    names = ("frontier", "quality-max_denoising_steps", "steps", "fix-harm", "fix-harm-tasks")
    for name in (*names, "predictions"):
        for theme in ("light", "dark"):
            with Image.open(where / "figures" / f"{name}-{theme}.png") as picture:
                assert picture.width > 600
                corner = picture.convert("L").getpixel((2, 2))
                assert isinstance(corner, int)
                assert corner > 200 if theme == "light" else corner < 60
    assert page.count("<figure>") >= 5
    assert page.index("<h2>Drafting and refining") < page.index("AUP of draft:")
    assert page.index("AUP of draft:") < page.index("<h2>Right answers by task")
    assert "verify" in page and "Best policy below a latency" in page
    assert read_results(where).manifest["text"].splitlines()[2] in page


LATE = """
version: 1
name: late
tasks: {file: items.jsonl}
policies:
  late: {inline: {defaults: {budget: 1us}, on_deadline: fail}}
"""
ALONE = """\
  alone:
    inline: {defaults: {refine: {mode: none}}}
    vary: {defaults.draft.max_denoising_steps: [1, 2]}
"""


def test_answers_that_nobody_can_judge_and_policies_that_never_answer_are_said(
    run_small: Run, folder: Path
) -> None:
    lines = (folder / "items.jsonl").read_text()
    (folder / "items.jsonl").write_text(lines.replace('"a"', '"a", "scorer": "numeric"'))
    page = write_report(run_small(LATE + ALONE)).read_text("utf-8")
    shown = re.sub(r'"data:[^"]*"', "", page)
    assert "6 answers could not be scored" in shown
    assert re.search("most often: ValueError: the reference .* has no number", shown)
    assert "<td>6, 6 failed</td>" in shown and "<td>3, 3 not scored</td>" in shown
    assert "nan" not in shown


def test_a_report_of_nothing_that_was_judged_has_what_was_measured(run_small: Run) -> None:
    text = (LATE + ALONE).replace("{file: items.jsonl}", "{file: items.jsonl, scorer: numeric}")
    page = write_report(run_small(text)).read_text("utf-8")
    assert page.count("<figure>") == 2  # steps and predictions
    assert "nan" not in re.sub(r'"data:[^"]*"', "", page)


def test_a_report_of_nothing_but_failures_is_still_a_page(run_small: Run) -> None:
    page = write_report(run_small(LATE)).read_text("utf-8")
    assert "<figure>" not in page
    assert "0.0 % (0.0 to 39.0)" in page  # six requests


def test_a_report_that_cannot_be_written_is_said(run_small: Run) -> None:
    where = run_small()
    (where / "figures").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"figures: cannot be written: File exists"):
        write_report(where)


def test_every_number_is_in_the_summary_and_follows_from_the_records(run_small: Run) -> None:
    where = run_small()
    write_report(where)
    summary = json.loads((where / "summary.json").read_text())
    records = [one for one in read_records(where) if one.condition == "verify"]
    assert summary["policies"]["verify"]["accuracy"] == 1.0
    assert summary["policies"]["verify"]["fixes"] == len(records) == 6
    assert set(summary["by_task"]) == {"a", "b"}
    assert summary["aup"].keys() == {"draft"}


def test_the_report_has_the_fitted_policy_where_one_can_be_fitted(
    conditions: Path, run_small: Run
) -> None:
    page = write_report(conditions).read_text("utf-8")
    assert "The fitted policy against presets" in page
    assert "refiner_only: fitted is " in page
    summary = json.loads((conditions / "summary.json").read_text())
    assert summary["fitted"]["refiner_only"]["found"]["pairs"] == 45
    assert "A fitted policy" not in write_report(run_small()).read_text("utf-8")


def test_a_report_of_one_policy_without_drafts(run_small: Run) -> None:
    text = (
        "version: 1\ntasks: {file: items.jsonl}\n"
        "policies: {only: {inline: {defaults: {refine: {mode: generate}}}}}\n"
    )
    assert "only" in write_report(run_small(text)).read_text()


def test_a_name_from_a_file_cannot_break_the_page(run_small: Run) -> None:
    where = run_small()
    with recording(where, {**read_results(where).manifest, "text": "<script>alert(1)</script>"}):
        pass
    assert "<script>" not in write_report(where).read_text()


def test_a_guided_draft_is_compared_with_one_that_nobody_guided(run_small: Run) -> None:
    guided = (
        "  guide: {inline: {defaults: {draft: {max_denoising_steps: 1}, refine: {mode: guide}}}}"
    )
    where = run_small(TEXT.replace("baseline:", f"{guided}\nbaseline:"))
    plain = [r.score for r in read_results(where).records["draft max_denoising_steps=1"]]
    assert [r.draft_score for r in read_results(where).records["guide"]] == plain
    alone = run_small(f"version: 1\ntasks: {{file: items.jsonl}}\npolicies:\n{guided}\n", "other")
    assert {r.draft_score for r in read_results(alone).records["guide"]} == {None}


def test_tables_answer_which_policy_is_best() -> None:
    def one(name: str, seconds: float, right: int) -> Summary:
        return summarise(
            name, [record(item=n, seconds=seconds, score=float(n < right)) for n in range(10)]
        )

    found = [one("slow", 0.08, 9), one("fast", 0.004, 5), one("worse", 0.05, 4)]
    assert [(row["p95 below"], row["policy"]) for row in best_under(found).rows] == [
        ("5 ms", "fast"), ("100 ms", "slow"),
    ]  # fmt: skip
    assert [(row["right at least"], row["policy"]) for row in fastest_above(found).rows] == [
        ("50 %", "fast"), ("70 %", "slow"), ("80 %", "slow"), ("90 %", "slow"),
    ]  # fmt: skip
    assert fastest_above([one("none", 1.0, 0)]).columns == []


def test_a_folder_without_its_own_records_is_said(run_small: Run) -> None:
    where = run_small()
    manifest = {**read_results(where).manifest, "conditions": []}
    with recording(where, manifest):
        pass
    with pytest.raises(CheckpointError, match="no records of this experiment"):
        write_report(where)


def test_a_grid_over_two_fields_has_a_curve_for_each_and_an_area_for_each_line(
    run_small: Run,
) -> None:
    steps = "vary: {defaults.draft.max_denoising_steps: [1, 2, 4]"
    where = run_small(TEXT.replace(steps, f"{steps}, defaults.draft.entropy_bound: [0.1, 0.3]"))
    lines = [(line.label, line.values) for line in grid_lines(read_results(where))]
    assert lines[:2] == [
        ("draft, entropy_bound=0.1", (1, 2, 4)),
        ("draft, entropy_bound=0.3", (1, 2, 4)),
    ]
    assert lines[2] == ("draft, max_denoising_steps=1", (0.1, 0.3)) and len(lines) == 5
    write_report(where)
    drawn = {file.name for file in (where / "figures").iterdir()}
    for name in ("frontier", "quality-max_denoising_steps", "quality-entropy_bound"):
        themes = (f"{name}-light", f"{name}-dark")
        assert {f"{one}.{kind}" for one in themes for kind in ("png", "svg")} <= drawn
    aup = json.loads((where / "summary.json").read_text())["aup"]
    assert set(aup) == {"draft, entropy_bound=0.1", "draft, entropy_bound=0.3"}


def test_scores_between_are_not_called_right_answers(run_small: Run) -> None:
    where = run_small(TEXT.replace("{file: items.jsonl}", "{file: items.jsonl, scorer: chrf}"))
    page = write_report(where).read_text()
    assert "Mean score against median latency" in page and "mean score" in page
    assert "Right answers against" not in page


def test_a_grid_over_durations_is_a_line_in_milliseconds(run_small: Run) -> None:
    vary = "vary: {defaults.draft.max_denoising_steps: [1, 2, 4]}"
    where = run_small(TEXT.replace(vary, "vary: {defaults.budget: [1s, 500ms]}"))
    assert [line.values for line in grid_lines(read_results(where))] == [(500.0, 1000.0)]
