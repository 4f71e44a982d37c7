"""Tables of the emulator: cases by architecture, and which of the gate's launches have run."""

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from hybrid.kernels.gate.emulate.verdicts import NOT_COVERED, PASSED, WRONG, Verdict, settings_of
from hybrid.kernels.gate.jobs import Job

NO_CASE = "no case"


def coverage(jobs: Sequence[Job], verdicts: Sequence[Verdict]) -> list[tuple[Job, str]]:
    """Every launch of the gate, and what became of its kernel with its settings."""
    found: dict[tuple[str, int], set[str]] = defaultdict(set)
    for verdict in verdicts:
        for settings in verdict.settings:
            found[settings, verdict.architecture].add(verdict.status)
    rows = []
    for job in jobs:
        statuses = found.get((settings_of(job.launch), job.architecture), {NO_CASE})
        # One wrong case of several is what counts; an operation that stopped later says nothing.
        worst = next(s for s in (WRONG, PASSED, NOT_COVERED, NO_CASE) if s in statuses)
        rows.append((job, worst))
    return rows


def show(verdicts: Sequence[Verdict], rows: Sequence[tuple[Job, str]]) -> None:
    """The tables, and under them what is wrong or not covered."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(_cases(verdicts))
    console.print(_launches(rows))
    for verdict in verdicts:
        for detail in verdict.details:
            line = f"{verdict.case} / sm_{verdict.architecture}: {verdict.status}: {detail}"
            console.print(line, style="red", highlight=False)
    counts = [sum(v.status == s for v in verdicts) for s in (PASSED, WRONG, NOT_COVERED)]
    console.print(
        f"{len(verdicts)} cases: {counts[0]} passed, {counts[1]} wrong, {counts[2]} not covered"
    )
    ran = sum(status == PASSED for _, status in rows)
    console.print(
        f"{len(rows)} launches of the compile gate: {ran} have passed with their settings"
    )


def as_json(verdicts: Sequence[Verdict], rows: Sequence[tuple[Job, str]]) -> dict[str, Any]:
    """The same for programs."""
    return {
        "cases": [asdict(verdict) for verdict in verdicts],
        "launches": {job.key: status for job, status in rows},
    }


def _cases(verdicts: Sequence[Verdict]) -> Table:
    """Errors of what has passed, over the largest number of the output."""
    architectures = sorted({v.architecture for v in verdicts})
    table = Table(title="Cases, largest errors", title_justify="left")
    for name in ("case", *(f"sm_{a}" for a in architectures)):
        table.add_column(name)
    by_case: dict[str, dict[int, Verdict]] = defaultdict(dict)
    for verdict in verdicts:
        by_case[verdict.case][verdict.architecture] = verdict
    for case, found in by_case.items():
        cells = [_cell(found.get(a)) for a in architectures]
        table.add_row(case, *cells)
    return table


def _cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    if verdict.status == PASSED:
        return f"{verdict.error:.1g}" if verdict.error else "equal"
    return f"[red]{verdict.status}[/red]"


def _launches(rows: Sequence[tuple[Job, str]]) -> Table:
    table = Table(title="Launches of the compile gate", title_justify="left")
    for name in ("operation", "kernel", "arch", "emulated"):
        table.add_column(name)
    for job, status in rows:
        style = None if status == PASSED else "red"
        table.add_row(job.case.name, job.kernel, f"sm_{job.architecture}", status, style=style)
    return table
