"""Lines through a grid of policies: one numeric field varies along each, all others are fixed."""

from collections.abc import Iterator
from dataclasses import dataclass

from hybrid.deadline import parse_duration
from hybrid.errors import RequestError
from hybrid.experiments.summary import Results

MAX_LINES = 8  # of one grid over one field; more cannot be told apart in a figure


@dataclass(frozen=True, slots=True)
class GridLine:
    """Conditions that differ in the field `path` alone, by increasing value; durations are ms.

    `fixed` says the values of the grid's other fields, and is empty in a grid over one field.
    `group` is the grid's name in the experiment.
    """

    group: str
    path: str
    fixed: str
    conditions: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def label(self) -> str:
        """Its name in a legend."""
        return f"{self.group}, {self.fixed}" if self.fixed else self.group


def grid_lines(results: Results) -> list[GridLine]:
    """All lines of at least two conditions, of all grids and all of their numeric fields.

    Of more than `MAX_LINES` over one field of a grid, the first, the last and some between.
    """
    found: list[GridLine] = []
    for group, conditions in results.groups().items():
        paths = dict.fromkeys(path for one in conditions for path in results.values(one))
        for path in paths:
            lines = list(_lines(results, group, conditions, path))
            steps = min(len(lines), MAX_LINES)
            kept = {round(index * (len(lines) - 1) / max(1, steps - 1)) for index in range(steps)}
            found += [lines[index] for index in sorted(kept)]
    return found


def _lines(results: Results, group: str, conditions: list[str], path: str) -> Iterator[GridLine]:
    by_fixed: dict[str, list[tuple[float, str]]] = {}
    for condition in conditions:
        values = dict(results.values(condition))
        value = _number(values.pop(path, None))
        if value is None:
            return
        fixed = ", ".join(f"{name.split('.')[-1]}={one}" for name, one in values.items())
        by_fixed.setdefault(fixed, []).append((value, condition))
    for fixed, points in by_fixed.items():
        if len(points) > 1:
            points.sort()
            names = tuple(condition for _, condition in points)
            yield GridLine(group, path, fixed, names, tuple(value for value, _ in points))


def _number(value: object) -> float | None:
    """A number, or a duration in milliseconds; None for anything else."""
    if isinstance(value, str):
        try:
            return 1e3 * parse_duration(value, "value")
        except RequestError:
            return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
