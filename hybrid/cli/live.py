"""The crystallising view: an answer's canvas taking shape in a terminal.

Drawing costs a few milliseconds a frame and competes with a model in the same process. So nothing
is drawn in the first quarter of a second, and a request that is over by then is replayed from its
recorded steps; the milliseconds shown are the recorded ones. Longer ones are drawn as they run.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.segment import Segment
from rich.text import Text

from hybrid.cli.render import bar, clock, crystallising, mean_entropy, printable
from hybrid.cli.terminal import Terminal
from hybrid.types import Denoised, Drafted, Event, Finished, Planned, Result

FIRST_DRAWING_S = 0.25
DRAW_EVERY_S = 0.05
REPLAY_FRAME_S = 0.12
REPLAY_S = 3.0
MARGIN = 2


@dataclass(frozen=True, slots=True)
class Frame:
    """One denoising step and when it happened, in seconds since the request began."""

    step: Denoised
    at_s: float


@dataclass(frozen=True, slots=True)
class Recording:
    """A finished request: its steps and its result."""

    frames: tuple[Frame, ...]
    result: Result


def record_events(
    events: Iterable[Event], watch: Callable[[Event, float], None] = lambda event, at_s: None
) -> Recording:
    """Read a stream to its end; `watch` sees each event and the seconds since the stream began."""
    started = time.monotonic()
    frames: list[Frame] = []
    for event in events:
        at_s = time.monotonic() - started
        watch(event, at_s)
        if isinstance(event, Denoised):
            frames.append(Frame(event, at_s))
        elif isinstance(event, Finished):
            late_s = at_s - event.result.timing.total_s  # before the request's own clock started
            on_time = (Frame(frame.step, max(0.0, frame.at_s - late_s)) for frame in frames)
            return Recording(tuple(on_time), event.result)
    raise AssertionError("a stream ends with Finished or an error")


def answer_live(events: Iterable[Event], console: Terminal) -> Result:
    """Show a request while it runs, or again if it was too quick, then the answer for good."""
    with Screen(console) as screen:
        recording = record_events(events, screen.watch)
    if screen.has_drawn:
        screen.print_answer(recording.result)
    else:
        replay(recording, console)
    return recording.result


def replay(recording: Recording, console: Terminal) -> None:
    """Show a finished request at a pace that people can follow, then the answer for good."""
    pace_s = min(REPLAY_FRAME_S, REPLAY_S / max(1, len(recording.frames)))
    with Screen(console, recording.result.timing.budget_s) as screen:
        for frame in recording.frames:
            screen.step(frame)
            screen.draw()
            time.sleep(pace_s)
    screen.print_answer(recording.result)


@dataclass(slots=True)
class Screen:
    """The paragraphs that are finished, printed, and the live region with the active canvas.

    A canvas may end in mid-sentence, so what is printed for good ends at a line's end and the rest
    of the finished text stays in front of the active canvas.
    """

    console: Terminal
    budget_s: float | None = None
    live: Live = field(init=False)
    frame: Frame | None = None
    refines: bool = False
    waiting_for: str = ""
    printed: str = ""  # finished text above the live region
    pending: str = ""  # finished text that is not
    most_entropy: float = 0.0
    clock_cells: int = 0  # widest so far, so that the gauges do not jump
    has_drawn: bool = False
    draw_at: float = field(default_factory=lambda: time.monotonic() + FIRST_DRAWING_S)

    def __post_init__(self) -> None:
        self.live = Live(
            console=self.console, auto_refresh=False, transient=True, vertical_overflow="crop"
        )

    def __enter__(self) -> "Screen":
        self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.update("")
        self.live.stop()

    def watch(self, event: Event, at_s: float) -> None:
        """Take an event in; draw if it is time to."""
        match event:
            case Planned(plan=plan):
                self.budget_s = plan.budget_s
                self.refines = plan.refine.mode != "none"
                if plan.draft is None:  # nothing else happens before the answer
                    self.waiting_for, self.draw_at = "the refiner is writing", 0.0
            case Denoised():
                self.step(Frame(event, at_s))
            case Drafted() if self.refines:
                self.waiting_for = "drafted, in the refiner's hands"
            case _:
                return
        if time.monotonic() >= self.draw_at:
            self.draw()

    def step(self, frame: Frame) -> None:
        """Move on to a step; the canvas before the one it belongs to is finished."""
        if self.frame and self.frame.step.canvas != frame.step.canvas:
            self.pending += self.frame.step.text
            self.most_entropy = 0.0
        self.frame = frame
        self.most_entropy = max(self.most_entropy, mean_entropy(frame.step))

    def draw(self) -> None:
        """Print the lines that are finished, and show the active canvas and its gauges."""
        finished, newline, self.pending = self.pending.rpartition("\n")
        if newline:
            self.console.print(_margin(Text(printable(finished))))
            self.printed += finished + newline
        self.live.update(Tail(self._active(), max(1, self.console.height - 1)), refresh=True)
        self.has_drawn, self.draw_at = True, time.monotonic() + DRAW_EVERY_S

    def print_answer(self, result: Result) -> None:
        """Print what is not yet printed of the answer; all of it if refining changed the start."""
        rest = result.text.removeprefix(self.printed)
        self.console.print(_margin(Text(printable(rest))))

    def _active(self) -> RenderableType:
        if self.frame is None:
            return _margin(Text(self.waiting_for, "dim"))
        canvas = Text(printable(self.pending)).append_text(crystallising(self.frame.step))
        gauges = self._gauges(self.frame)
        # At the end of a full line, the terminal's echo of Ctrl-C would wrap and shift the region.
        gauges.truncate(self.console.width - MARGIN - len("^C") - 1)
        return Group(_margin(canvas), Text(), _margin(gauges))

    def _gauges(self, frame: Frame) -> Text:
        step, entropy = frame.step, mean_entropy(frame.step)
        text = Text(no_wrap=True)
        text.append("step ", "dim").append(f"{step.step:>2}/{step.max_denoising_steps}   ")
        if self.waiting_for:
            return text.append(self.waiting_for, "dim")
        text.append("entropy ", "dim")
        text.append_text(bar(entropy / max(self.most_entropy, 1e-9), "cyan"))
        elapsed = clock(frame.at_s, self.budget_s)
        self.clock_cells = max(self.clock_cells, elapsed.cell_len)
        elapsed.pad_left(self.clock_cells - elapsed.cell_len)
        return text.append(f" {entropy:4.2f}   ").append_text(elapsed)


@dataclass(frozen=True, slots=True)
class Tail:
    """The last rows of something taller than the terminal: the end is where things happen."""

    content: RenderableType
    rows: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in console.render_lines(self.content, options, pad=False)[-self.rows :]:
            yield from line
            yield Segment.line()


def _margin(text: Text) -> Padding:
    return Padding(text, (0, 0, 0, MARGIN), expand=False)
