"""Accuracy against median latency with the Pareto front: the first figure of a report.

Points of one grid that overlap share a label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from hybrid.experiments.summary import Summary, pareto
from hybrid.experiments.theme import Drawing, Theme, milliseconds

Points = Sequence[tuple[str, Summary]]  # a label ("" for none) and a policy's numbers
_WIDE = 4  # the slowest over the fastest, from which a logarithmic axis is easier to read
_SAME_PLACE = 6.0  # points of a page, the size of a marker, within which labels are joined
_LEGEND_COLUMNS = 5
_NAMED = 2  # policies below the axes, as far as there is room
_BELOW_FRONT = 12.0  # points of accuracy below the front's lowest, under which nothing is drawn
_SPOTS = (
    (5, 4, "left"), (5, -10, "left"), (-5, 4, "right"), (-5, -10, "right"), (12, -14, "left"),
    (12, 10, "left"), (-12, 10, "right"), (-12, -16, "right"), (3, 16, "left"), (3, -22, "left"),
)  # fmt: skip


def frontier(
    groups: Mapping[str, Points],
    lines: Mapping[str, Sequence[Sequence[Summary]]],
    quality: str = "right answers, %",
) -> Drawing:
    """Accuracy against median latency, with intervals and the Pareto front of these policies.

    `lines` are the points of a group that are joined: those that differ in one field. A policy far
    below the front is named at the lower edge.
    """
    everything = [one for points in groups.values() for _, one in points]
    front = pareto(everything)
    floor = max(0.0, 100 * min(one.accuracy for one in front) - _BELOW_FRONT)

    def drawing(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        axes.step(
            [1e3 * one.p50_s for one in front],
            [100 * one.accuracy for one in front],
            where="post", color=theme.grid, linewidth=7, alpha=0.45, zorder=1,
            solid_capstyle="round", solid_joinstyle="round", label="Pareto front",
        )  # fmt: skip
        labels: list[_Label] = []
        for index, (group, points) in enumerate(groups.items()):
            colour, marker = theme.series(index)
            shown = [one for _, one in points if 100 * one.accuracy >= floor]
            joined = [[one for one in line if one in shown] for line in lines.get(group, ())]
            _series(axes, shown, joined, colour, marker, group)
            labels += [
                _Label(label, 1e3 * one.p50_s, 100 * one.accuracy, colour)
                for label, one in points
                if 100 * one.accuracy >= floor
            ]
        lowest = min([100 * one.accuracy_interval[0] for one in everything if one in front])
        axes.set_ylim(max(-3.0, min(floor, lowest - 3)), 103)
        times = [1e3 * one.p50_s for one in everything if 100 * one.accuracy >= floor]
        if max(times) > _WIDE * min(times):
            axes.set_xlim(min(times) / 1.15, max(times) * 1.25)
            milliseconds(axes)
        else:
            bars = [1e3 * bound for one in everything for bound in one.p50_interval]
            low, high = max(min(bars), min(times) / 1.5), min(max(bars), 1.5 * max(times))
            room = 0.06 * (high - low)
            axes.set_xlim(max(0.0, low - room), high + room)
        hidden = [one for one in everything if 100 * one.accuracy < floor]
        if hidden:
            names = "; ".join(
                f"{one.condition}, {100 * one.accuracy:.0f} % in {1e3 * one.p50_s:.0f} ms"
                for one in hidden[:_NAMED]
            )
            names += f"; {len(hidden) - _NAMED} more" if len(hidden) > _NAMED else ""
            axes.text(
                0.99, 0.015, f"below: {names}", transform=axes.transAxes, fontsize=7, ha="right",
                color=theme.text, alpha=0.75, in_layout=False,
            )  # fmt: skip
        axes.set_xlabel("median latency, ms")
        axes.set_ylabel(quality)
        figure.legend(loc="outside upper left", ncols=min(_LEGEND_COLUMNS, 1 + len(groups)))
        _annotate(figure, axes, theme, labels)

    return drawing


def _series(
    axes: Any,
    points: Sequence[Summary],
    lines: Sequence[Sequence[Summary]],
    colour: str,
    marker: str,
    name: str,
) -> None:
    """One group: its points with both intervals, and its lines."""
    if not points:
        return
    x = np.array([1e3 * one.p50_s for one in points])
    y = np.array([100 * one.accuracy for one in points])
    x_bounds = 1e3 * np.array([one.p50_interval for one in points]).T
    y_bounds = 100 * np.array([one.accuracy_interval for one in points]).T
    for line in lines:
        line_x, line_y = [1e3 * one.p50_s for one in line], [100 * one.accuracy for one in line]
        axes.plot(line_x, line_y, color=colour, linewidth=1, alpha=0.55, zorder=2)
    axes.errorbar(
        x, y, np.maximum([y - y_bounds[0], y_bounds[1] - y], 0),
        np.maximum([x - x_bounds[0], x_bounds[1] - x], 0), fmt="none", ecolor=colour,
        elinewidth=0.9, alpha=0.5, zorder=2,
    )  # fmt: skip
    axes.plot(
        x, y, marker, markersize=5.5, color=colour, label=name, zorder=3, alpha=0.8,
        markeredgecolor=axes.get_facecolor(), markeredgewidth=0.7,  # where markers overlap
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Label:
    """What stands beside a point, or beside several that lie on each other; x is ms, y per cent."""

    text: str
    x: float
    y: float
    colour: str


def _annotate(figure: Figure, axes: Any, theme: Theme, labels: Sequence[_Label]) -> None:
    """Write each label beside its point, where nothing is yet; one that finds no room is left out.

    The table of policies names every point.
    """
    figure.draw_without_rendering()  # settles the layout, so that positions in pixels are known
    taken: list[Any] = []
    marks = [axes.transData.transform((one.x, one.y)) for one in labels]
    halo = [withStroke(linewidth=2, foreground=theme.background)]
    for label in _joined([one for one in labels if one.text], axes, _SAME_PLACE * figure.dpi / 72):
        for right, up, side in _SPOTS:
            note = axes.annotate(
                label.text, (label.x, label.y), xytext=(right, up), textcoords="offset points",
                ha=side, fontsize=7, color=label.colour, zorder=4, path_effects=halo,
            )  # fmt: skip
            box = note.get_window_extent().padded(1)
            inside = axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
            on_point = any(box.padded(4).contains(*mark) for mark in marks)
            if inside and not on_point and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            note.remove()


def _joined(labels: Sequence[_Label], axes: Any, near: float) -> list[_Label]:
    """Labels of one colour whose points are within `near` pixels of the first of them, as one."""
    groups: list[list[_Label]] = []
    for label in labels:
        index = axes.transData.transform((label.x, label.y))
        for group in groups:
            first = axes.transData.transform((group[0].x, group[0].y))
            if group[0].colour == label.colour and np.hypot(*(index - first)) <= near:
                group.append(label)
                break
        else:
            groups.append([label])
    return [
        _Label(
            ", ".join(one.text for one in group),
            float(np.mean([one.x for one in group])),
            float(np.mean([one.y for one in group])),
            group[0].colour,
        )
        for group in groups
    ]
