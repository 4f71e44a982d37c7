"""`hybrid fit`: a policy from an experiment, and how it does on items it was not fitted to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.measure import Measurement
from rich.table import Table
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from hybrid.cli.terminal import Terminal
from hybrid.deadline import format_duration
from hybrid.errors import BackendError

if TYPE_CHECKING:
    from hybrid.experiments.preset_comparison import PresetComparison


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
    from hybrid.experiments.fit import fit as fit_policy
    from hybrid.experiments.preset_comparison import compare_with_presets
    from hybrid.experiments.summary import read_results
    from hybrid.experiments.tables import fitted_tables

    results = read_results(folder)
    fitted = fit_policy(results)
    presets = compare_with_presets(results, fitted)
    warnings = [f"warning: {one}" for one in fitted.warnings]
    _write(out, fitted.values, [*map(_say, presets.compared), *warnings])
    console = Terminal()
    for found in fitted_tables(fitted, presets):
        table = Table(*found.columns, title=found.title)
        for row in found.rows:
            table.add_row(*(row[name] for name in found.columns))
        # a table that is cut at a terminal's width would leave numbers out
        width = Measurement.get(console, console.options, table).maximum
        console.print(table, width=max(width, console.width), crop=False, soft_wrap=True)
        for line in found.lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{out}: reported on the second half of the items, replayed from {folder}")


def _say(comparison: "PresetComparison") -> str:
    """A comparison in a line, for the policy's file."""
    one, other = comparison.fitted, comparison.preset
    p95 = [format_duration(side.p95_s) for side in (one, other)]
    return (
        f"{comparison.name}: {100 * one.accuracy:.1f} % in {p95[0]} (p95, budget "
        f"{format_duration(comparison.budget_s)}) against {100 * other.accuracy:.1f} % in "
        f"{p95[1]}, {comparison.verdict}"
    )


def _write(out: Path, values: Mapping[str, Any], found: Sequence[str]) -> None:
    """The policy's file, and at its top what came out on the items that it was not fitted to."""
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 100
    policy = CommentedMap(values)
    title = "Right answers on the items that chose nothing, fitted against each preset:"
    policy.yaml_set_start_comment("\n".join([title, *found, " "]))
    try:
        with out.open("w", encoding="utf-8") as stream:
            yaml.dump(policy, stream)
    except OSError as error:
        raise BackendError("fit", f"{out}: {error.strerror}") from None
