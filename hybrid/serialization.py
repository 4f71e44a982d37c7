"""A result or a plan as JSON: all that was decided and measured, under the names of hybrid.types.

Durations are seconds. What cannot be written as a JSON number (an infinite log-probability) is
null.
"""

import json
import math
from dataclasses import asdict, replace
from html import escape
from typing import Any

from hybrid.deadline import format_duration
from hybrid.types import Plan, Result


def record(result: Result | Plan) -> dict[str, Any]:
    """As plain values, with the plan's label, the steps used and whether in budget."""
    if isinstance(result, Plan):
        rejected = [asdict(rejection) for rejection in result.rejected]
        return {"label": result.label, **asdict(replace(result, rejected=())), "rejected": rejected}
    values = asdict(replace(result, plan=replace(result.plan, rejected=())))
    values["plan"] = record(result.plan)
    if result.draft is not None:
        values["draft"]["steps"] = result.draft.steps
    values["timing"]["within_budget"] = result.timing.within_budget
    return values


def to_dict(result: Result | Plan) -> dict[str, Any]:
    """As `record`, in values that JSON can hold: no NaN, no infinity, lists for tuples."""
    values: dict[str, Any] = finite(record(result))
    return values


def to_html(result: Result) -> str:
    """A small table for notebooks: the answer, the plan, time and notes."""
    timing, plan = result.timing, result.plan
    budget = "" if timing.budget_s is None else f" of {format_duration(timing.budget_s)}"
    rows = [
        ("answer", result.text),
        ("plan", f"{plan.label} ({plan.rule})"),
        ("time", f"{format_duration(timing.total_s)}{budget}"),
        ("finish reason", result.finish_reason),
        *(("note", note) for note in result.notes),
    ]
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th>"
        f"<td style='text-align:left;white-space:pre-wrap'>{escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table>{cells}</table>"


def to_json(result: Result | Plan) -> str:
    """One JSON object on one line, in ASCII: safe in any terminal, pipe and encoding."""
    return json.dumps(to_dict(result), allow_nan=False)


def finite(value: Any) -> Any:
    """Plain values in which NaN and infinity are null: JSON has no numbers for them."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
