"""`hybrid prove`: every operation of the engine beside its reference, on this machine's device."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from hybrid.cli.render import printable
from hybrid.cli.run import Flag
from hybrid.cli.terminal import Terminal

if TYPE_CHECKING:
    from hybrid.kernels.proof import Proof, ProofOutcome


def prove(
    *,
    device: str = "auto",
    as_json: Annotated[Flag, Parameter(name="--json")] = False,
    report: Path | None = None,
) -> int:
    """Compute every operation on a device and compare it with its reference.

    Takes about a minute. The engine does the same when it first loads a model on a GPU.

    Parameters
    ----------
    device
        "auto", "cpu", "cuda" or "cuda:N"; on a CPU references are compared with float64.
    as_json
        Print one JSON object.
    report
        Also write the JSON to this file.
    """
    import torch

    from hybrid.engine.proofs import prove_device

    name = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(name)
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", 0)
    terminal = Terminal()
    with terminal.status("proving", spinner="dots") as status:
        proof = prove_device(chosen, lambda outcome: status.update(f"proving {outcome.case}"))
    text = json.dumps(asdict(proof))
    if report:
        report.write_text(text + "\n")
    if as_json:
        print(text)
    else:
        terminal.print(table(proof))
        terminal.print(summary(proof), highlight=False, markup=False)
    return int(bool(proof.failures))


def table(proof: "Proof") -> Table:
    """A row a case: error and tolerance, time and share of the copy bandwidth."""
    found = Table(box=None, pad_edge=False)
    for name in ("operation", "weights", "size"):
        found.add_column(name)
    for name in ("error", "allowed", "ms", "of copy"):
        found.add_column(name, justify="right")
    found.add_column("", overflow="fold")
    for outcome in proof.outcomes:
        size = outcome.case.split(", ")[-1]
        style = "" if outcome.passed else "red"
        says = "" if outcome.passed else f"✗ {printable(outcome.detail)}"
        numbers = _numbers(outcome)
        found.add_row(outcome.operation, outcome.form, size, *numbers, Text(says), style=style)
    return found


def summary(proof: "Proof") -> str:
    """One line on what was proved, and with which versions."""
    passed = len(proof.outcomes) - len(proof.failures)
    versions = ", ".join(f"{name} {value}" for name, value in proof.key.items() if value)
    return f"{passed} of {len(proof.outcomes)} passed ({versions})"


def _numbers(outcome: "ProofOutcome") -> tuple[str, str, str, str]:
    return (
        "-" if outcome.error is None else f"{outcome.error:.1e}",
        f"{outcome.tolerance:.1e}",
        "-" if outcome.ms is None else f"{outcome.ms:.3f}",
        "-" if outcome.share is None else f"{outcome.share:.0%}",
    )
