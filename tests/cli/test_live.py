"""The crystallising view: quick runs are replayed, slow ones drawn, finished lines stay above."""

import io
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hybrid.cli.live import Frame, Recording, Screen, Tail, answer_live, record_events, replay
from hybrid.cli.terminal import Terminal
from hybrid.types import Denoised, Edit, Finished, Request, Result

REQUEST = Request("x", budget_s=0.3)
Scripted = Callable[..., Any]


def terminal(height: int = 24) -> tuple[Terminal, io.StringIO]:
    out = io.StringIO()
    return Terminal(file=out, force_terminal=True, width=80, height=height, no_color=True), out


def left_on_screen(output: str) -> list[str]:
    """The lines that remain: a transient region is erased with `\\x1b[2K` before what follows."""
    lines: list[str] = [""]
    row = 0
    at = 0
    while at < len(output):
        if output.startswith("\x1b[1A", at):
            row, at = row - 1, at + 4
        elif output.startswith("\x1b[2K", at):
            lines[row], at = "", at + 4
        elif output[at] == "\x1b":
            at += next(i for i, c in enumerate(output[at:]) if c.isalpha() and c != "\x1b") + 1
        elif output[at] == "\n":
            row, at = row + 1, at + 1
            lines += [""] * (row + 1 - len(lines))
        elif output[at] == "\r":
            at += 1
        else:
            lines[row], at = lines[row] + output[at], at + 1
    return "\n".join(line.rstrip() for line in lines).rstrip().split("\n")


def step(canvas: int, number: int, *pieces: str, entropy: float = 0.0) -> Denoised:
    kept = (True,) * len(pieces)
    return Denoised(canvas, number, 8, pieces, kept, (entropy,) * len(pieces))


def result_of(hybrid: Any) -> Result:
    return next(e.result for e in hybrid.stream(REQUEST) if isinstance(e, Finished))


def test_steps_are_timed_from_the_start_of_the_request(scripted: Scripted) -> None:
    recording = record_events(scripted("a", steps=4, step_s=0.01).stream(REQUEST))
    times = [frame.at_s for frame in recording.frames]
    assert len(times) == 4
    assert times == sorted(times)
    assert times[0] >= 0.005
    assert times[-1] <= recording.result.timing.total_s


def test_loading_before_the_request_is_not_part_of_its_time(scripted: Scripted) -> None:
    def late() -> Any:
        time.sleep(0.2)
        yield from scripted("a", steps=2).stream(REQUEST)

    recording = record_events(late())
    assert all(frame.at_s < 0.1 for frame in recording.frames)


def test_a_quick_run_is_not_drawn_and_then_replayed(scripted: Scripted) -> None:
    console, out = terminal()
    drawn_during_run = []

    def events() -> Any:
        for event in scripted("ka", " bel", steps=3).stream(REQUEST):
            yield event
            drawn_during_run.append("step" in out.getvalue())

    result = answer_live(events(), console)
    assert not any(drawn_during_run)
    assert [f"{n}/16" in out.getvalue() for n in (1, 2, 3)] == [True] * 3
    assert left_on_screen(out.getvalue()) == ["  ka bel"]
    assert result.text == "ka bel"


def test_a_slow_run_is_drawn_while_it_runs_and_not_again(scripted: Scripted) -> None:
    console, out = terminal()
    answer_live(scripted("ka", " bel", steps=6, step_s=0.1).stream(REQUEST), console)
    assert out.getvalue().count("6/16") == 1
    assert left_on_screen(out.getvalue()) == ["  ka bel"]


def test_finished_lines_are_printed_and_the_rest_waits_for_the_next_canvas() -> None:
    console, out = terminal()
    with Screen(console) as screen:
        screen.step(Frame(step(0, 1, "one\n", "two"), 0.0))
        screen.step(Frame(step(1, 1, " three"), 0.1))
        screen.draw()
        assert left_on_screen(out.getvalue())[:2] == ["  one", "  two three"]
    assert left_on_screen(out.getvalue()) == ["  one"]


@pytest.mark.parametrize("step_s", [0.0, 0.1])
def test_the_answer_is_left_whole_over_several_canvases(scripted: Scripted, step_s: float) -> None:
    console, out = terminal()
    hybrid = scripted(step_s=step_s)
    hybrid.canvases = [["one\n", "two"], [" three\n", "four"]]
    answer_live(hybrid.stream(REQUEST), console)
    assert left_on_screen(out.getvalue()) == ["  one", "  two three", "  four"]


def test_a_refined_start_is_printed_anew(scripted: Scripted) -> None:
    console, out = terminal()
    hybrid = scripted(step_s=0.1, edits=(Edit(0, 3, "one", "1"),))
    hybrid.canvases = [["one\n"], ["two"]]
    answer_live(hybrid.stream(REQUEST), console)
    assert left_on_screen(out.getvalue()) == ["  one", "  1", "  two"]


def test_nobody_waits_for_the_refiner_in_the_dark(scripted: Scripted) -> None:
    console, out = terminal()
    planned = next(iter(scripted("a").stream(REQUEST)))
    alone = replace(planned, plan=replace(planned.plan, draft=None))
    with Screen(console) as screen:
        screen.watch(alone, 0.0)
        assert "the refiner is writing" in out.getvalue()


def test_a_canvas_taller_than_the_terminal_shows_its_end() -> None:
    console, out = terminal(height=6)
    console.print(Tail("\n".join(f"line {n}" for n in range(50)), rows=5))
    assert left_on_screen(out.getvalue())[:5] == [f"line {n}" for n in range(45, 50)]


@pytest.mark.parametrize("width", [20, 40, 71, 72, 73, 74, 75, 80])
def test_gauges_take_one_line_with_room_for_the_echo_of_ctrl_c(width: int) -> None:
    console, out = terminal()
    console.width = width
    with Screen(console, budget_s=2.0) as screen:
        screen.step(Frame(step(0, 3, "a", entropy=1.0), 1.5))
        screen.draw()
        shown = left_on_screen(out.getvalue())
        last = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue().rsplit("\n", 1)[1])
    assert len(shown) == 3  # the canvas, a gap, the gauges
    assert "step" in last and len(last) <= width - 3


@pytest.mark.parametrize(("steps", "seconds"), [(5, 0.6), (600, 3.0)])
def test_a_replay_takes_120_ms_a_step_and_three_seconds_at_most(
    steps: int, seconds: float, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, _ = terminal()
    result, slept = result_of(scripted("a")), [0.0]
    monkeypatch.setattr("hybrid.cli.live.time.sleep", slept.append)
    frames = tuple(Frame(step(0, n, "a"), n / 1000) for n in range(1, steps + 1))
    replay(Recording(frames, result), console)
    assert sum(slept) == pytest.approx(seconds)


def test_closing_early_gives_the_terminal_back() -> None:
    console, out = terminal()
    with pytest.raises(KeyboardInterrupt), Screen(console) as screen:
        screen.step(Frame(step(0, 1, "half an ans"), 0.0))
        screen.draw()
        raise KeyboardInterrupt
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")
    assert left_on_screen(out.getvalue()) == [""]
