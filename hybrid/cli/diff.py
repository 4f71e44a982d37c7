"""`hybrid policy diff`: which requests two policies would decide differently; answers nothing."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich import box
from rich.markup import escape
from rich.table import Table

from hybrid.cli.render import printable
from hybrid.cli.run import Flag
from hybrid.cli.terminal import Terminal
from hybrid.deadline import format_duration
from hybrid.errors import RequestError
from hybrid.policies.loader import load_policy
from hybrid.policies.schema import Policy
from hybrid.requests import read_requests
from hybrid.types import Plan, Request

Decision = Plan | RequestError


@dataclass(frozen=True, slots=True)
class Difference:
    """A request, by its place in the file, and what either policy makes of it."""

    place: int
    request: Request
    first: Decision
    second: Decision


def diff(
    first: str,
    second: str,
    /,
    *,
    requests: Path,
    as_json: Annotated[Flag, Parameter(name="--json")] = False,
) -> None:
    """Show which requests two policies would decide differently; answers nothing.

    Parameters
    ----------
    first
        A preset's name or a policy file.
    second
        Another.
    requests
        A file with one JSON object a line: `prompt` (or `messages`) and any option of a request,
        such as `task` and `budget`.
    as_json
        Print one JSON object.
    """
    asked = read_requests(requests)
    differences = compare(load_policy(first), load_policy(second), asked)
    if as_json:
        print(json.dumps({"requests": len(asked), "different": [*map(_record, differences)]}))
        return
    console = Terminal()
    if differences:
        console.print(_table(first, second, differences))
    console.print(f"{len(differences)} of {len(asked)} requests are decided differently")


def compare(first: Policy, second: Policy, asked: Sequence[Request]) -> list[Difference]:
    """The requests whose plans differ; both policies decide on this machine's latency."""
    from hybrid.api import Hybrid  # imports the pipeline
    from hybrid.backends import load_models
    from hybrid.policies.rules import no_signals

    models = load_models(first.models.drafter, first.models.refiner)
    is_shared = first.models == second.models
    shared = models if is_shared else None
    with (
        Hybrid(first, models, signals=no_signals(first)) as one,
        Hybrid(second, shared, signals=no_signals(second)) as other,
    ):
        pairs = [(request, _decide(one, request), _decide(other, request)) for request in asked]
    return [
        Difference(place, *pair)
        for place, pair in enumerate(pairs, 1)
        if _essence(pair[1]) != _essence(pair[2])
    ]


def _decide(hybrid: Any, request: Request) -> Decision:
    try:
        plan: Plan = hybrid.explain(request)
    except RequestError as error:
        return error
    return plan


def _essence(decision: Decision) -> object:
    """What the answer depends on; predictions and reasons may differ."""
    if isinstance(decision, RequestError):
        return None
    refine = None if decision.refine.mode == "none" else decision.refine
    return decision.draft, refine, decision.budget_s, decision.max_new_tokens


def _table(first: str, second: str, differences: Sequence[Difference]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="dim")
    table.add_column("line", justify="right")
    table.add_column("prompt", max_width=32, no_wrap=True, overflow="ellipsis")
    for name in (first, second):
        table.add_column(escape(printable(name)))
    for difference in differences:
        prompt = difference.request.question
        decisions = (_short(difference.first), _short(difference.second))
        table.add_row(f"{difference.place}", escape(printable(prompt)), *decisions)
    return table


def _short(decision: Decision) -> str:
    if isinstance(decision, RequestError):
        return escape(printable(f"refused: {decision}"))
    predicted = decision.predicted
    expected = f"p50 {format_duration(predicted.latency_p50_s)}, quality {predicted.quality:.2f}"
    return f"{decision.label} [dim]({expected})[/dim]"


def _record(difference: Difference) -> dict[str, Any]:
    def decided(decision: Decision) -> dict[str, Any]:
        if isinstance(decision, RequestError):
            return {"refused": str(decision)}
        return {"label": decision.label, "predicted": asdict(decision.predicted)} | {
            name: getattr(decision, name) for name in ("budget_s", "max_new_tokens", "rule")
        }

    return {
        "line": difference.place,
        "prompt": difference.request.question,
        "first": decided(difference.first),
        "second": decided(difference.second),
    }
