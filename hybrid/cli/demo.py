"""`hybrid demo`: six requests of different tasks and budgets, answered by the embedded pair.

Each request runs undisturbed and is shown afterwards, step by step, at a pace that people can
follow; every millisecond on the screen is the run's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hybrid.cli.live import MARGIN, REPLAY_FRAME_S, Recording, record_events, replay
from hybrid.cli.picture import picture
from hybrid.cli.render import printable
from hybrid.cli.run import Answers, Flag
from hybrid.cli.summary import summary
from hybrid.cli.terminal import Terminal
from hybrid.deadline import format_duration
from hybrid.errors import RequestError
from hybrid.requests import Options, make_request
from hybrid.types import Request

SEED = 7


@dataclass(frozen=True, slots=True)
class Case:
    """A request of the demo, as a user would write it."""

    task: str
    prompt: str
    budget: str
    infill: str | None = None

    @property
    def name(self) -> str:
        """The task, or what is special about the request."""
        return "infill" if self.infill else self.task

    @property
    def request(self) -> Request:
        """What is sent; the seed is fixed so that the demo repeats."""
        options = Options(task=self.task, budget=self.budget, infill=self.infill, seed=SEED)
        return make_request(self.prompt, options)


CASES = (
    Case("translate", "translate : the big red dog sees the small old cat", "300ms"),
    Case("code", "code : 1 1 == x + y == u + v", "100ms"),
    Case("reason", "mod ten : 7 + 4 , - 2 , + 3 , + 1", "400ms"),
    Case("list", "name 5 fruits", "50ms"),
    Case(
        "question",
        "ask : tom = ann ; eva = tom ; ann = leo ; leo = sue ; sue = ray ; ray = eva . "
        "from eva hop 3",
        "600ms",
    ),
    Case(
        "code",
        "code : 9 == x + y == u + v",
        "200ms",
        infill="x =<blank:1> ; y = 4 ; u =<blank:1> ; v = 2",
    ),
)


@dataclass(frozen=True, slots=True)
class Performance:
    """One case, what happened, and whether the answer is right by the task's exact checker."""

    case: Case
    recording: Recording
    right: bool


def demo(*, svg: Path | None = None, no_live: Flag = False) -> None:
    """Watch six requests being answered by the embedded pair.

    Parameters
    ----------
    svg
        Write a picture of one crystallising answer to this file.
    no_live
        Print the finished answers only, also on a terminal.
    """
    if svg is not None and (svg.is_dir() or not svg.absolute().parent.is_dir()):
        raise RequestError("--svg", str(svg), "a file in a folder that exists")
    from hybrid.api import Hybrid
    from hybrid.embedded.tasks import check

    console = Terminal()
    with Hybrid.from_policy() as hybrid:
        animate = console.can_animate and not no_live
        shown = perform(hybrid, CASES, check, console, animate=animate)
    if svg is not None:
        save(picture(most_steps(shown).recording, most_steps(shown).case.prompt), svg)
        console.print(f"\nwrote {printable(str(svg))}", markup=False, highlight=False)


def perform(
    hybrid: Answers,
    cases: Sequence[Case],
    check: Callable[[str, str], bool],
    console: Terminal,
    *,
    animate: bool,
) -> list[Performance]:
    """Answer and show each case, then all in one table. `check(prompt, answer)`: is it right?"""
    hybrid.load()
    hybrid.generate(cases[0].request)  # the first request through a model is slow for once
    pace = f"Steps are replayed, {format_duration(REPLAY_FRAME_S)} each; " if animate else ""
    console.print(Text(f"{pace}{'t' if pace else 'T'}imes are the runs' own.", "dim"))
    performances: list[Performance] = []
    for number, case in enumerate(cases, start=1):
        console.print(_heading(number, len(cases), case))
        recording = record_events(hybrid.stream(case.request))
        answer = recording.result.text
        if animate:
            replay(recording, console)
        else:
            console.print(Padding(Text(printable(answer)), (0, MARGIN), expand=False))
        console.print(Padding(summary(recording.result), (1, MARGIN, 0, MARGIN), expand=False))
        performances.append(Performance(case, recording, check(case.prompt, answer)))
    console.print()
    console.print(Padding(closing_table(performances), (0, MARGIN), expand=False))
    return performances


def closing_table(performances: Sequence[Performance]) -> Table:
    """One line a request: what was decided, what it took, and whether the answer is right."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, header_style="dim")
    table.add_column("task", no_wrap=True)
    table.add_column("plan", no_wrap=True)
    for name in ("steps", "edits", "predicted", "time of budget"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("right", justify="center", no_wrap=True)
    for performance in performances:
        result = performance.recording.result
        timing, refinement = result.timing, result.refinement
        budget = format_duration(performance.case.request.budget_s or 0.0)
        time_of_budget = Text(f"{format_duration(timing.total_s)} of {budget} ")
        table.add_row(
            performance.case.name,
            result.plan.label,
            str(result.usage.denoising_steps or "-"),
            str(len(refinement.edits)) if refinement and result.draft else "-",
            format_duration(timing.predicted_p50_s),
            time_of_budget.append_text(_mark(timing.within_budget)),
            _mark(performance.right),
        )
    return table


def most_steps(performances: Sequence[Performance]) -> Performance:
    """The one with the most to see."""
    return max(performances, key=lambda performance: len(performance.recording.frames))


def save(svg: str, path: Path) -> None:
    """Write the picture; raises RequestError if the file cannot be written."""
    try:
        path.write_text(svg, encoding="utf-8")
    except OSError as error:
        raise RequestError("--svg", str(path), f"a writable file ({error.strerror})") from error


def _heading(number: int, total: int, case: Case) -> Group:
    title = Text().append(f"{number}/{total} ", "dim").append(case.name, "bold")
    title.append(f" within {format_duration(case.request.budget_s or 0.0)}", "dim")
    asked = Table.grid()
    for line in (case.prompt, case.infill):
        if line:
            asked.add_row(Text("> ", "cyan"), Text(printable(line)))
    return Group(Text(), title, asked, Text())


def _mark(is_good: bool) -> Text:
    return Text("✓", "green") if is_good else Text("✗", "red")
