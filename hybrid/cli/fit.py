"""`hybrid fit`: a policy from an experiment, and how it does on items it was not fitted to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.table import Table
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from hybrid.cli.terminal import Terminal
from hybrid.deadline import format_duration
from hybrid.errors import BackendError

if TYPE_CHECKING:
    from hybrid.experiments.fit import Rival


def fit(
    folder: Path, *, out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path("policy.yaml")
) -> None:
    """Write a policy fitted to one half of an experiment's items; report on the other half.

    Parameters
    ----------
    folder
        Where an experiment was recorded.
    out
        The policy file to write.
    """
    from hybrid.experiments.fit import against_presets
    from hybrid.experiments.fit import fit as fit_policy
    from hybrid.experiments.summary import read_results

    results = read_results(folder)
    fitted = fit_policy(results)
    rivals = against_presets(results, fitted)
    _write(out, fitted.values, [_say(rival) for rival in rivals])
    console = Terminal()
    chosen = Table("task", "plans on the front of accuracy and latency (first half)")
    for task, reason in fitted.reasons.items():
        chosen.add_row(task, reason)
    console.print(chosen)
    table = Table("preset", "its p95", "right", "fitted, within that", "difference (95 %)")
    lines = []
    for rival in rivals:
        low, high = rival.interval
        table.add_row(
            rival.name,
            format_duration(rival.limit_s),
            f"{100 * rival.preset.accuracy:.1f} %",
            f"{100 * rival.fitted.accuracy:.1f} %" if rival.fitted.scores else "-",
            f"{100 * rival.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
        )
        lines.append(f"{rival.name}: fitted is {rival.verdict}")
        for who, plans in (("", rival.preset.missing), ("fitted, ", rival.fitted.missing)):
            lines += [f"{rival.name}: {who}{one} was never run ({n})" for one, n in plans.items()]
    console.print(table)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{out}: measured on the second half of the items, replayed from {folder}")


def _say(rival: "Rival") -> str:
    """A comparison in a line, for the policy's file."""
    right = [
        f"{100 * one.accuracy:.1f} %" if one.scores else "-" for one in (rival.fitted, rival.preset)
    ]
    within = format_duration(rival.limit_s)
    return f"{rival.name} within {within} (p95): {right[0]} against {right[1]}, {rival.verdict}"


def _write(out: Path, values: Mapping[str, Any], found: Sequence[str]) -> None:
    """The policy's file, and at its top what came out on the items that it was not fitted to."""
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 100
    policy = CommentedMap(values)
    policy.yaml_set_start_comment("\n".join(["On held-out items, right answers:", *found, " "]))
    try:
        with out.open("w", encoding="utf-8") as stream:
            yaml.dump(policy, stream)
    except OSError as error:
        raise BackendError("fit", f"{out}: {error.strerror}") from None
