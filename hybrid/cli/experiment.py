"""`hybrid experiment`: run policies on tasks, replay others on what was recorded, and report.

A run can be stopped at any time and started again: what is recorded is not made twice.
"""

import json
from collections.abc import Sequence
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
    from hybrid.experiments.replay import Replayed
    from hybrid.experiments.runner import Trial
    from hybrid.experiments.scorers import Scorers

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
    from hybrid.experiments.conditions import list_conditions
    from hybrid.experiments.definition import load_experiment
    from hybrid.experiments.items import list_items
    from hybrid.experiments.manifest import build_manifest
    from hybrid.experiments.records import MANIFEST, read_manifest, recording
    from hybrid.experiments.runner import Pipelines, list_trials, run_trials
    from hybrid.experiments.sandbox import confine
    from hybrid.experiments.scorers import CODE, LIKELIHOOD, Scorers

    experiment, document = load_experiment(file)
    conditions = list_conditions(experiment, document, file.parent)
    scorers = Scorers(file.parent)
    items = list_items(experiment.tasks, document, file.parent, scorers)
    trials = list_trials(conditions, items, experiment.seeds, experiment.repeats)
    lacking = confine.missing() if any(item.scorer == CODE for item in items) else []
    for one in lacking:
        Terminal(stderr=True).print(f"warning: code is scored without {one}", soft_wrap=True)
    folder = out or Path("runs") / experiment.name
    before = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
    pipelines = Pipelines(folder, before.get("costs"))
    if dry_run:
        todo = _unrecorded(trials, folder)
        _tell(trials, todo, pipelines.predicted_s(todo[:_SAMPLE]), folder)
        return
    _import_scorers(scorers, {item.scorer for item in items} - {LIKELIHOOD})
    for condition in conditions:  # loads the models before anything is written
        pipelines.pipeline(condition)
    manifest = build_manifest(
        experiment, file.read_text("utf-8"), conditions, items, pipelines.costs
    )
    errors = 0
    with recording(folder, manifest) as recorder, _progress() as progress:
        todo = _unrecorded(trials, folder)  # only now does nobody else add to them
        bar = progress.add_task(
            experiment.name, total=len(trials), completed=len(trials) - len(todo)
        )

        def done(record: Any) -> None:
            nonlocal errors
            errors += record.error is not None or record.score_error is not None
            progress.advance(bar)

        try:
            run_trials(todo, pipelines, scorers, recorder, experiment.load, done)
        finally:
            scorers.close()
    console = Terminal()
    console.print(f"{len(trials)} requests recorded in {folder}, {len(todo)} of them now")
    if errors:
        console.print(f"{errors} of them failed or were not scored: see `error` and `score_error`")
    console.print(f"next: hybrid experiment report {folder}")


def _import_scorers(scorers: "Scorers", names: set[str]) -> None:
    """Raises RequestError if a scorer's module cannot be imported, whatever it raises."""
    for name in names:
        try:
            scorers.find(name)
        except (Exception, SystemExit) as error:
            allowed = f"a function that can be imported ({type(error).__name__}: {error})"
            raise RequestError("scorer", name, allowed) from error


def _unrecorded(trials: "Sequence[Trial]", folder: Path) -> "list[Trial]":
    """What was not answered yet, failed, or could not be scored."""
    from hybrid.experiments.records import has_records, read_records

    recorded = read_records(folder) if has_records(folder) else []
    done = {r.key for r in recorded if r.error is None and r.score_error is None}
    return [trial for trial in trials if trial.key not in done]


@app.command
def report(folder: Path) -> None:
    """Write `report.html` and figures of what was recorded.

    Parameters
    ----------
    folder
        Where an experiment was recorded.
    """
    from hybrid.experiments.report import write_report

    file = write_report(folder)
    Terminal().print(f"{file} and {file.parent / 'figures'}")


@app.command
def replay(experiment: Path, *, policy: Annotated[list[str], Parameter(negative="")]) -> None:
    """Say how other policies would have done, from what was recorded; runs no model.

    Parameters
    ----------
    experiment
        The folder that an experiment was recorded in, or its YAML if that is `runs/NAME`.
    policy
        A preset's name or a policy file; may be given more than once.
    """
    from hybrid.experiments.replay import as_policy, replay_policy
    from hybrid.policies.loader import load_policy

    folder = _folder(experiment)
    table = Table("policy", "requests", "right (95 %)", *_SHARES, "in time", "plans")
    lines = [] if any(folder.glob("latency-*.json")) else [_UNLEARNED]
    for name in policy:
        found = replay_policy(folder, load_policy(name))
        plans = ", ".join(f"{label}: {count}" for label, count in found.plans.most_common(3))
        numbers = _numbers(found) if found.scores else ["-"] * (len(_SHARES) + 2)
        table.add_row(name, str(len(found.scores)), *numbers, plans)
        if found.derived:
            lines.append(f"{name}: {found.derived} answers are worked out of `verify` records")
        for label, count in found.missing.most_common():
            lines.append(f"{name}: {label} was never run ({count} requests); to run it, add")
            lines.append(f"  {label}: {{inline: {json.dumps(as_policy(found.settings[label]))}}}")
    console = Terminal()
    console.print(table)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _folder(given: Path) -> Path:
    """An experiment's folder, given as that or as its YAML."""
    from hybrid.experiments.definition import load_experiment

    return Path("runs") / load_experiment(given)[0].name if given.is_file() else given


def _numbers(found: "Replayed") -> list[str]:
    low, high = found.interval
    accuracy = f"{100 * found.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
    times = [format_duration(found.latency(share)) for share in _SHARES.values()]
    return [accuracy, *times, f"{100 * found.in_time:.1f} %"]


_SHARES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_UNLEARNED = (
    "no latency-*.json, which a run writes as it ends: plans are as on a machine just measured"
)
_SAMPLE = 2000  # trials that are planned for an estimate


def _tell(trials: "Sequence[Trial]", todo: "Sequence[Trial]", seconds: float, folder: Path) -> None:
    """What a dry run says."""
    from hybrid.experiments.statistics import DISCORDANCE, detectable_difference, items_needed

    if not trials:
        raise RequestError("experiment", "no trials", "at least one policy and one item")
    conditions = list(dict.fromkeys(trial.condition.name for trial in trials))
    table = Table("task", "items", "requests")
    for task in dict.fromkeys(trial.item.task for trial in trials):
        here = [trial for trial in trials if trial.item.task == task]
        table.add_row(task, str(len({trial.item.number for trial in here})), str(len(here)))
    console = Terminal()
    console.print(table)
    if len(todo) > _SAMPLE:
        seconds *= len(todo) / _SAMPLE
    pairs = len({(trial.item.task, trial.item.number) for trial in trials})
    least = detectable_difference(pairs)
    console.print(
        f"{len(conditions)} policies, {len(trials)} requests, {len(todo)} of them not yet in "
        f"{folder}; about {seconds / 60:.1f} minutes one at a time, by the plans' medians"
    )
    where = f"{pairs} items, of which two policies disagree on 15 % (80 % power, 5 % level)"
    needed = items_needed(DISCORDANCE)
    if pairs < needed:
        console.print(f"{where}: too few to show any difference in accuracy; {needed} show some")
    else:
        console.print(f"{where}, show differences in accuracy from {100 * least:.1f} points")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
