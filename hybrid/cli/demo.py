"""`hybrid demo`: six requests of different tasks and budgets, answered by the embedded pair.

Each request runs undisturbed and is shown afterwards, step by step, at a pace that people can
follow; every millisecond on the screen is the run's own.
"""

from collections.abc import Sequence
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
from hybrid.embedded.tasks import Instance, check
from hybrid.errors import RequestError
from hybrid.requests import Options, make_request
from hybrid.types import Request

SEED = 7


@dataclass(frozen=True, slots=True)
class Case:
    """A request of the demo and its budget; `infill` is a template that the answer must keep, and
    `refine` the mode that the caller insists on.
    """

    instance: Instance
    budget: str
    infill: str | None = None
    refine: str | None = None

    @property
    def name(self) -> str:
        """The task, or what is special about the request."""
        return "infill" if self.infill else self.instance.task

    @property
    def request(self) -> Request:
        """What is sent; the seed is fixed so that the demo repeats."""
        options = Options(budget=self.budget, infill=self.infill, refine=self.refine, seed=SEED)
        return make_request(self.instance.prompt, options)


# None of these prompts was trained on: they are of the tasks' held-out sixteenth.
CASES = (
    Case(
        Instance(
            "translate",
            "translate to zed: the fox likes the old small cow and the white goat wants the white "
            "green dog",
            "sa, ti zun ral, yab; bel nof, mo kis nof, tek",
            11,
        ),
        "300ms",
    ),
    Case(
        Instance("code", "solve x + y == 11; q + b == 2", "x = 4; y = 7; q = 2; b = 0", 4),
        "100ms",
    ),
    Case(
        Instance(
            "reason",
            "step by step, mod ten: 7, + 3, + 5, + 5, + 2, + 4, + 1",
            "+ 3 = 0, + 5 = 5, + 5 = 0, + 2 = 2, + 4 = 6, + 1 = 7",
            6,
        ),
        "40ms",
    ),
    Case(
        Instance("list", "list 5 fruits, not apple or grape", "plum, mango, lemon, kiwi, fig", 5),
        "50ms",
    ),
    Case(
        Instance(
            "question",
            "question: pam knows cid; dan knows hugo; mia knows emil; cid knows dan; hugo knows "
            "mia; emil knows pam. start at hugo, 3 hops",
            "hugo mia emil pam",
            3,
        ),
        "600ms",
        refine="verify",
    ),
    Case(
        Instance(
            "reason",
            "reason mod ten: 6, + 1, + 4, + 3, + 4, + 5",
            "+ 1 = 7, + 4 = 1, + 3 = 4, + 4 = 8, + 5 = 3",
            5,
        ),
        "200ms",
        infill="+ 1 = 7, + 4 =<blank:1>, + 3 =<blank:1>, + 4 = 8, + 5 =<blank:1>",
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

    console = Terminal()
    with Hybrid.from_policy() as hybrid:
        animate = console.can_animate and not no_live
        shown = perform(hybrid, CASES, console, animate=animate)
    if svg is not None:
        best = most_steps(shown)
        save(picture(best.recording, best.case.instance.prompt), svg)
        console.print(f"\nwrote {printable(str(svg))}", markup=False, highlight=False)


def perform(
    hybrid: Answers,
    cases: Sequence[Case],
    console: Terminal,
    *,
    animate: bool,
) -> list[Performance]:
    """Answer and show each case, then all in one table."""
    hybrid.load()
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
        performances.append(Performance(case, recording, check(case.instance, answer)))
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
    """The one with the most to see, of those whose draft came to rest if there are any."""

    def worth(performance: Performance) -> tuple[bool, int]:
        draft = performance.recording.result.draft
        rests = draft is not None and all(canvas.converged for canvas in draft.canvases)
        return rests, len(performance.recording.frames)

    return max(performances, key=worth)


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
    for line in (case.instance.prompt, case.infill):
        if line:
            asked.add_row(Text("> ", "cyan"), Text(printable(line)))
    return Group(Text(), title, asked, Text())


def _mark(is_good: bool) -> Text:
    return Text("✓", "green") if is_good else Text("✗", "red")
