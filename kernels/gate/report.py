"""How findings are printed: a table with the problems under it, or JSON."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from hybrid.kernels.gate.findings import Finding


def show(findings: Sequence[Finding], version: str) -> None:
    """The table, and under it what is wrong."""
    table = Table(title=f"Triton {version}", title_justify="left")
    for name in ("operation", "kernel", "arch", "regs", "stack", "spills", "shared", "tensor",
                 "matrix", "per weight", "s"):  # fmt: skip
        table.add_column(name)
    for finding in findings:
        job, compiled = finding.job, finding.compiled
        cells = ["-"] * 6
        if compiled:
            sizes = (compiled.registers, compiled.stack, compiled.spills, compiled.shared_memory)
            cells = [*map(str, (*sizes, compiled.tensor_memory)), compiled.matrix]
        per_weight = finding.instructions_per_weight
        cells += [f"{per_weight:.2f}" if per_weight else "", f"{finding.seconds:.1f}"]
        style = "red" if finding.problems else None
        table.add_row(job.case.name, job.kernel, f"sm_{job.architecture}", *cells, style=style)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for finding in findings:
        for problem in finding.problems:
            console.print(f"{finding.job.key}: {problem}", style="red", highlight=False)
    bad = sum(bool(finding.problems) for finding in findings)
    console.print(f"{len(findings)} launches compiled, {bad} with problems")


def as_json(finding: Finding) -> dict[str, Any]:
    """What `--json` prints of a finding."""
    return {
        "key": finding.job.key,
        "compiled": asdict(finding.compiled) if finding.compiled else None,
        "instructions_per_weight": finding.instructions_per_weight,
        "problems": finding.problems,
        "seconds": round(finding.seconds, 2),
    }
