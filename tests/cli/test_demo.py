"""The demo: undisturbed runs, shown in full, with a table that is honest about each."""

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hybrid.cli.demo import CASES, Case, Performance, closing_table, most_steps, perform, save
from hybrid.cli.live import Frame, Recording
from hybrid.cli.picture import chosen_frames, picture
from hybrid.cli.terminal import Terminal
from hybrid.embedded.tasks import check, is_held_out, recognise
from hybrid.errors import RequestError
from hybrid.types import Denoised, Edit, Finished, Request, Result

Scripted = Callable[..., Any]


def plain() -> tuple[Terminal, io.StringIO]:
    out = io.StringIO()
    return Terminal(file=out, width=80), out


def run_of(hybrid: Any, steps: int = 0) -> Recording:
    result = next(e.result for e in hybrid.stream(Request("x")) if isinstance(e, Finished))
    return Recording(tuple(frame(n) for n in range(1, steps + 1)), result)


def frame(number: int, canvas: int = 0) -> Frame:
    return Frame(Denoised(canvas, number, 48, ("a",), (True,), (0.1,)), number / 1000)


def test_six_requests_of_different_tasks_and_budgets() -> None:
    assert len(CASES) == 6
    assert len({case.name for case in CASES}) == 6
    assert len({case.budget for case in CASES}) >= 5
    assert sum(case.infill is not None for case in CASES) == 1
    assert all(case.request.seed is not None for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_prompt_is_of_its_task_held_out_and_answerable(case: Case) -> None:
    instance = case.instance
    assert recognise(instance.prompt) == instance.task
    assert is_held_out(instance.prompt)
    assert check(instance, instance.answer)
    if case.infill:
        pattern = re.escape(case.infill).replace("<blank:1>", r" \d")
        assert re.fullmatch(pattern, instance.answer)


def test_every_request_is_shown_with_its_record_and_checked(scripted: Scripted) -> None:
    console, out = plain()
    right = CASES[4].instance.answer
    shown = perform(scripted(right), CASES, console, animate=False)
    assert [performance.right for performance in shown] == [n == 4 for n in range(6)]
    text = out.getvalue()
    for number, case in enumerate(CASES, start=1):
        assert f"{number}/6 {case.name} within" in text
    assert text.count("decision ") == text.count(f"\n  {right}") == 6
    assert "\x1b" not in text


def test_every_case_is_asked_once(scripted: Scripted) -> None:
    console, _ = plain()
    hybrid = scripted("a")
    perform(hybrid, CASES[:2], console, animate=False)
    assert [r.prompt for r in hybrid.requests] == [case.instance.prompt for case in CASES[:2]]


def test_an_animated_demo_says_that_it_is_a_replay(scripted: Scripted) -> None:
    out = io.StringIO()
    console = Terminal(file=out, force_terminal=True, width=80)
    perform(scripted("a", steps=2), CASES[:1], console, animate=True)
    assert "replayed" in out.getvalue()
    assert "2/16" in out.getvalue()


def test_the_table_fits_80_columns_and_hides_no_miss(scripted: Scripted) -> None:
    console, out = plain()
    late = run_of(scripted("a", edits=(Edit(0, 1, "a", "b"),)))
    console.print(closing_table([Performance(case, late, False) for case in CASES]))
    lines = out.getvalue().splitlines()
    assert len(lines) == 8
    assert "…" not in out.getvalue()
    assert all(line.rstrip().endswith("✗") for line in lines[2:])
    for name in ("task", "plan", "steps", "edits", "predicted", "time of budget", "right"):
        assert name in lines[0]


@pytest.mark.parametrize(
    ("steps", "chosen"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (13, [1, 2, 4, 8, 13])],
)
def test_a_picture_shows_doubling_steps_and_the_last(
    scripted: Scripted, steps: int, chosen: list[int]
) -> None:
    recording = run_of(scripted("a"), steps)
    assert [f.step.step for f in chosen_frames(recording)] == chosen


def test_a_picture_is_of_one_canvas(scripted: Scripted) -> None:
    recording = run_of(scripted("a"), 2)
    two = Recording((*recording.frames, frame(1, canvas=1)), recording.result)
    assert [f.step.canvas for f in chosen_frames(two)] == [0, 0]


def test_a_picture_is_valid_svg_that_loads_nothing(scripted: Scripted) -> None:
    svg = picture(run_of(scripted("a", edits=(Edit(0, 1, "a", "<&>"),)), 5), "x < y & z")
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert svg.count("http") == 1  # the namespace
    shown = "".join(root.itertext()).replace("\xa0", " ")
    assert "x < y & z" in shown and "step  1" in shown and "<&>" in shown


def test_the_draft_with_most_steps_is_the_one_to_picture(scripted: Scripted) -> None:
    few, many = (Performance(CASES[0], run_of(scripted("a"), n), True) for n in (2, 9))
    assert most_steps([few, many]) is many


def test_a_picture_that_cannot_be_written_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="a writable file"):
        save("<svg/>", tmp_path)


def test_results_without_a_draft_have_a_line_too(scripted: Scripted) -> None:
    console, out = plain()
    recording = run_of(scripted("a"))
    result: Result = recording.result
    alone = replace(result, draft=None, plan=replace(result.plan, draft=None))
    console.print(closing_table([Performance(CASES[0], Recording((), alone), True)]))
    assert "AR alone" in out.getvalue()
