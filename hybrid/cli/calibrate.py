"""`hybrid calibrate`: measure what every part of a plan costs on this machine, and keep it.

The embedded pair knows prompts of its own: half of the time it answers them, so that the first
requests are predicted from what their task usually takes. Nothing is kept before all is measured.
"""

import errno
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich import box
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hybrid.cli.render import printable
from hybrid.cli.run import Flag
from hybrid.cli.terminal import Terminal
from hybrid.errors import RequestError
from hybrid.policies.latency import Latency, LatencyModel
from hybrid.policies.loader import load_policy
from hybrid.policies.measurements import (
    Measurement,
    cache_file,
    history_file,
    is_writable,
    others,
    read_measurement,
    write_measurement,
)
from hybrid.policies.schema import Policy

if TYPE_CHECKING:
    from hybrid.pipeline import Pipeline

MOST_MINUTES = 60.0
_SHORTEST_BUDGET_S, _LONGEST_BUDGET_S = 0.01, 1.0  # what the embedded pair's plans take


def calibrate(
    *,
    policy: str = "balanced",
    minutes: float = 1.0,
    as_json: Annotated[Flag, Parameter(name="--json")] = False,
) -> None:
    """Measure this machine, so that latency is predicted well; keeps the result.

    Parameters
    ----------
    policy
        A preset's name or a policy file: its models are measured.
    minutes
        How long to measure; loading comes on top.
    as_json
        Print one JSON object.
    """
    if not 0 < minutes <= MOST_MINUTES:
        raise RequestError("--minutes", minutes, f"above 0, at most {MOST_MINUTES:g}")
    chosen = load_policy(policy)
    file = cache_file(chosen)
    if not is_writable(file):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(file.parent))
    before = _before(file, chosen)

    from hybrid.backends import load_models  # the commands before need no torch
    from hybrid.pipeline import Pipeline
    from hybrid.policies.calibration import measure_well, now
    from hybrid.policies.history import History

    models = load_models(chosen.models.drafter, chosen.models.refiner)
    seconds, knows_prompts = 60 * minutes, models.recognise is not None
    with _progress() as progress:
        bar = progress.add_task("measuring", total=1.0)
        share = 0.5 if knows_prompts else 1.0
        costs = measure_well(
            models.drafter,
            models.refiner,
            seconds * share,
            lambda done: progress.update(bar, completed=done * share),
        )
        measurement = Measurement(costs, "calibrated", now())
        history = History(costs, history_file(chosen))
        if knows_prompts:
            progress.update(bar, description="answering")
            pipeline = Pipeline(chosen, models, costs, history=history)
            _answer(pipeline, seconds * (1 - share), lambda d: progress.update(bar, completed=d))
    if not write_measurement(file, measurement, chosen):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(file.parent))
    history.save()
    _print(measurement, history.requests, file, before, as_json)


def _answer(pipeline: "Pipeline", seconds: float, progress: Callable[[float], None]) -> None:
    """Answer prompts of the pair's tasks, under budgets from too short to plenty."""
    from hybrid.embedded.tasks import TASKS, draw
    from hybrid.types import Request

    rng, started, done = random.Random(), time.monotonic(), 0.0
    known = [task for task in TASKS if task in pipeline.policy.tasks] or list(TASKS)
    while done < 1:
        budget = _SHORTEST_BUDGET_S * (_LONGEST_BUDGET_S / _SHORTEST_BUDGET_S) ** rng.random()
        prompt = draw(rng.choice(known), rng, "train").prompt
        pipeline.answer(Request(prompt, budget_s=budget), lambda event: None)
        done = min(1.0, (time.monotonic() - started) / seconds)
        progress(0.5 + done / 2)


def _before(file: Path, policy: Policy) -> str:
    """What is kept already and will not count, for people."""
    kept = read_measurement(file)
    if isinstance(kept, Measurement):
        return ""
    if kept.reason:
        return f"{file.name} {kept.reason}: replaced"
    found = others(file, policy)
    return f"measured before for {found[0]}: does not count here" if found else ""


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Terminal(stderr=True), transient=True)


def _print(measured: Measurement, requests: int, file: Path, before: str, as_json: bool) -> None:
    parts = _parts(measured.costs)
    if as_json:
        values = {name: {"p50_s": part.p50_s, "p95_s": part.p95_s} for name, part in parts.items()}
        about = {"measured_at": measured.measured_at, "file": str(file), "before": before}
        print(json.dumps({**about, "requests": requests, "parts": values}))
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="dim")
    table.add_column("part", no_wrap=True)
    for name in ("p50", "p95"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, part in parts.items():
        table.add_row(name, f"{1e3 * part.p50_s:.3g} ms", f"{1e3 * part.p95_s:.3g} ms")
    console = Terminal()
    console.print(table)
    if before:
        console.print(escape(printable(before)))
    learned = f"; learned from {requests} requests" if requests else ""
    console.print(escape(printable(f"{measured.description}, kept in {file}{learned}")))


def _parts(costs: LatencyModel) -> dict[str, Latency]:
    """What there is to see of the costs, in the order of a request's life."""
    parts = {
        "around the models": costs.overhead(),
        "drafter reads 30 tokens": costs.prefill(30),
        "denoising step": costs.step(30),
        "canvas read again": costs.commit(1),
        "refiner reads 30 tokens": costs.read(30),
        "refiner writes a token": costs.write(1, 1),
    }
    return {name: part for name, part in parts.items() if part.p50_s > 0}
