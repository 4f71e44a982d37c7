"""`hybrid experiment`: run policies on tasks, replay others on what was recorded, and report.

A run can be stopped at any time and started again: what is recorded is not made twice.
"""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from hybrid.cli.run import Flag
from hybrid.cli.terminal import Terminal
from hybrid.deadline import format_duration
from hybrid.errors import RequestError

if TYPE_CHECKING:
    from hybrid.experiments.arms import Arm
    from hybrid.experiments.runner import Cell

app = App(name="experiment", help="Measure policies: run, replay, report.")


@app.command
def run(
    file: Path,
    *,
    out: Path | None = None,
    dry_run: Annotated[Flag, Parameter(name="--dry-run")] = False,
) -> None:
    """Answer every item under every policy; go on where an earlier run was stopped.

    Parameters
    ----------
    file
        The experiment, as YAML.
    out
        Where to record; `runs/NAME` if left out.
    dry_run
        Only say what would be run, how long it would take, and what it could tell.
    """
    from hybrid.experiments.arms import list_arms
    from hybrid.experiments.definition import load_experiment
    from hybrid.experiments.items import list_items
    from hybrid.experiments.records import ABOUT, RECORDS, read_about, read_records, recording
    from hybrid.experiments.runner import Bench, list_cells, run_cells
    from hybrid.policies.measurements import costs_to_json

    experiment, document = load_experiment(file)
    arms = list_arms(experiment, document, file.parent)
    items = list_items(experiment.tasks, file.parent)
    cells = list_cells(arms, items, experiment.seeds, experiment.repeats)
    folder = out or Path("runs") / experiment.name
    recorded = read_records(folder) if (folder / RECORDS).is_file() else []
    known = {record.key for record in recorded if record.error is None}
    todo = [cell for cell in cells if cell.key not in known]
    before = read_about(folder) if (folder / ABOUT).is_file() else {}
    bench = Bench(folder, before.get("costs"))
    if dry_run:
        _tell(cells, todo, bench.predicted_s(todo[:_SAMPLE]), folder)
        return
    for arm in arms:
        bench.pipeline(arm)  # loads the models, and says what is wrong before anything is written
    about = {
        "experiment": experiment.model_dump(mode="json"),
        "text": file.read_text("utf-8"),
        "baseline": experiment.baseline or arms[0].name,
        "arms": [_describe(arm) for arm in arms],
        "items": len(items),
        "costs": {key: costs_to_json(costs) for key, costs in bench.costs.items()},
        **surroundings(),
    }
    errors = 0
    with recording(folder, about) as recorder, _progress() as progress:
        bar = progress.add_task(experiment.name, total=len(cells), completed=len(cells) - len(todo))

        def done(record: Any) -> None:
            nonlocal errors
            errors += record.error is not None or record.score_error is not None
            progress.advance(bar)

        run_cells(todo, bench, recorder, experiment.load, done)
    console = Terminal()
    console.print(f"{len(cells)} requests recorded in {folder}, {len(todo)} of them now")
    if errors:
        console.print(f"{errors} of them failed or could not be judged: see `error` in the records")
    console.print(f"next: hybrid experiment report {folder}")


@app.command
def report(folder: Path) -> None:
    """Write `report.html` and pictures about what was recorded.

    Parameters
    ----------
    folder
        Where an experiment was recorded.
    """
    from hybrid.experiments.report import write_report

    file = write_report(folder)
    Terminal().print(f"{file} and {file.parent / 'figures'}")


@app.command
def replay(folder: Path, *, policy: Annotated[list[str], Parameter(negative="")]) -> None:
    """Say how other policies would have done, from what was recorded; runs no model.

    Parameters
    ----------
    folder
        Where an experiment was recorded.
    policy
        A preset's name or a policy file; may be given more than once.
    """
    from hybrid.experiments.replay import replay_policy
    from hybrid.policies.loader import load_policy

    table = Table("policy", "items", "accuracy", "p50", "p95", "plans", "missing")
    for name in policy:
        found = replay_policy(folder, load_policy(name))
        low, high = found.interval
        table.add_row(
            name,
            str(len(found.scores)),
            f"{100 * found.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
            if found.scores
            else "-",
            format_duration(found.latency(0.5)) if found.scores else "-",
            format_duration(found.latency(0.95)) if found.scores else "-",
            ", ".join(f"{label}: {count}" for label, count in found.plans.most_common(3)),
            "; ".join(f"{label} ({count} items)" for label, count in found.missing.most_common(3)),
        )
    Terminal().print(table)


_SAMPLE = 2000  # cells that are planned for an estimate


def surroundings() -> dict[str, Any]:
    """Versions, machine and time, for whoever reads the records later."""
    import platform

    from hybrid import __version__
    from hybrid.policies.measurements import hardware, versions

    return {
        "version": __version__,
        "versions": versions(),
        "python": platform.python_version(),
        "hardware": hardware(),
        "command": sys.argv[1:],
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _describe(arm: "Arm") -> dict[str, Any]:
    import json

    return {
        "name": arm.name,
        "group": arm.group,
        "digest": arm.digest,
        "values": dict(arm.values),
        "policy": json.loads(arm.text),
    }


def _tell(cells: "Sequence[Cell]", todo: "Sequence[Cell]", seconds: float, folder: Path) -> None:
    """What a dry run says."""
    from hybrid.experiments.statistics import detectable_difference

    if not cells:
        raise RequestError("experiment", "no cells", "at least one policy and one item")
    arms = list(dict.fromkeys(cell.arm.name for cell in cells))
    table = Table("task", "items", "requests")
    for task in dict.fromkeys(cell.item.task for cell in cells):
        here = [cell for cell in cells if cell.item.task == task]
        table.add_row(task, str(len({cell.item.number for cell in here})), str(len(here)))
    console = Terminal()
    console.print(table)
    if len(todo) > _SAMPLE:
        seconds *= len(todo) / _SAMPLE
    pairs = len(cells) // len(arms)
    least = detectable_difference(pairs)
    console.print(
        f"{len(arms)} policies, {len(cells)} requests, {len(todo)} of them not yet in {folder}; "
        f"about {seconds / 60:.1f} minutes one at a time, by the plans' medians"
    )
    console.print(
        f"with {pairs} pairs, two policies that disagree on 15 % of the answers can be told apart "
        f"(80 % power, 5 % level) if their accuracies differ by {100 * least:.1f} points"
    )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
