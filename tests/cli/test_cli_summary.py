"""The record for people: a line each, in words, and never longer than needed."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hybrid.cli.summary import summary
from hybrid.cli.terminal import Terminal
from hybrid.types import Canvas, Edit, Finished, Prediction, Rejection, Request, Result


@pytest.fixture
def result(scripted: Callable[..., Any]) -> Result:
    hybrid = scripted("ka", " bel", steps=3, edits=(Edit(0, 2, "ka", "mo"),))
    return next(
        event.result
        for event in hybrid.stream(Request("x", budget_s=0.3))
        if isinstance(event, Finished)
    )


def lines(result: Result, width: int = 80) -> dict[str, str]:
    out = io.StringIO()
    Terminal(file=out, width=width).print(summary(result))
    named = (line.rstrip().split(maxsplit=1) for line in out.getvalue().splitlines())
    return {name: rest for name, rest in named}


def test_a_refined_answer(result: Result) -> None:
    shown = lines(replace(result, timing=replace(result.timing, total_s=0.026)))
    assert shown == {
        "decision": "16 steps + verify (task translate)",
        "draft": "3 of 16 steps, converged, entropy 0.002 nats, 11 ms",
        "verdict": "accepted by the refiner: log-probability -0.01 mean, -inf least",
        "refinement": "verify (lossless), 1 edit, 2 tokens kept, 2 passes, 14 ms",
        "edits": "ka→mo bel",
        "time": "26 ms of 300 ms ━╌╌╌╌╌╌╌╌╌╌╌  predicted 24 ms, p95 38 ms",
        "answer": "3 tokens, complete, seed 7",
    }


def test_what_did_not_happen_has_no_line(result: Result) -> None:
    plan = replace(result.plan, draft=None)
    bare = replace(result, plan=plan, draft=None, verdict=None, refinement=None)
    assert list(lines(bare)) == ["decision", "time", "answer"]


def test_the_number_of_plans_is_told(result: Result) -> None:
    other = Rejection("AR alone", Prediction(0.1, 0.2, 0.99), "over the budget")
    plan = replace(result.plan, rejected=(other, other))
    shown = lines(replace(result, plan=plan))
    assert shown["decision"] == "16 steps + verify of 3 plans (task translate)"


def test_each_canvas_is_counted_and_one_can_miss(result: Result) -> None:
    assert result.draft
    canvases = (Canvas(3, True, 0.0), Canvas(16, False, 0.4))
    shown = lines(replace(result, draft=replace(result.draft, canvases=canvases)))
    assert shown["draft"].startswith("3 + 16 of 16 steps, not converged, ")


def test_a_missed_budget_is_said(result: Result) -> None:
    late = replace(result, timing=replace(result.timing, total_s=0.35), finish_reason="budget")
    assert " over  predicted" in lines(late)["time"]
    assert lines(late)["answer"] == "3 tokens, cut by the budget: the best so far, seed 7"


def test_notes_and_reasons_cannot_steer_the_terminal(result: Result) -> None:
    hostile = replace(result, notes=("\x1b[2J",), plan=replace(result.plan, rule="\x9b1m [red]"))
    shown = lines(hostile)
    assert shown["note"] == "\\x1b[2J"
    assert shown["decision"].endswith("(\\x9b1m [red])")


def test_it_fits_40_columns(result: Result) -> None:
    out = io.StringIO()
    Terminal(file=out, width=40).print(summary(result))
    assert max(len(line) for line in out.getvalue().splitlines()) <= 40
    assert "…" not in out.getvalue()
