"""A result as JSON: all of it, valid whatever the model wrote or scored."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from hybrid.serialization import record, to_json
from hybrid.types import Edit, Finished, Request, Result


@pytest.fixture
def result(scripted: Callable[..., Any]) -> Result:
    hybrid = scripted("ka", " bel", steps=3, edits=(Edit(0, 2, "ka", "mo"),))
    return next(
        event.result
        for event in hybrid.stream(Request("x", budget_s=0.3))
        if isinstance(event, Finished)
    )


def test_nothing_of_the_result_is_left_out(result: Result) -> None:
    values = record(result)
    assert set(values) == {field.name for field in fields(Result)}
    for part in ("signals", "plan", "draft", "verdict", "refinement", "timing", "usage"):
        assert {field.name for field in fields(getattr(result, part))} <= set(values[part])


def test_what_is_derived_is_there_too(result: Result) -> None:
    values = record(result)
    assert values["plan"]["label"] == "16 steps + verify"
    assert values["draft"]["steps"] == 3
    assert values["timing"]["within_budget"] is True
    assert values["draft"]["canvases"][0] == {
        "steps": 3,
        "converged": True,
        "mean_entropy": 0.001,
    }


def test_an_answer_of_the_refiner_alone_has_no_draft(result: Result) -> None:
    values = record(replace(result, draft=None, plan=replace(result.plan, draft=None)))
    assert values["draft"] is None
    assert values["plan"]["label"] == "AR alone"


def test_what_json_has_no_number_for_is_null(result: Result) -> None:
    assert result.verdict and result.verdict.min_logprob == float("-inf")
    assert json.loads(to_json(result))["verdict"]["min_logprob"] is None


def test_any_text_survives(result: Result) -> None:
    text = "\x1b[2J \x9b \u2028 \udcff 🙂 \n"
    line = to_json(replace(result, text=text))
    assert line.isascii() and "\n" not in line
    assert json.loads(line)["text"] == text
