"""The pictures of a report, each drawn for light and for dark pages.

Every function takes axes and values and draws; colours, fonts and files are `draw`'s.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler

matplotlib.use("Agg")

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from hybrid.experiments.records import Record
from hybrid.experiments.statistics import proportion_interval
from hybrid.experiments.summary import Summary, pareto

DPI = 160
_CLOSE = 2.5  # points of accuracy between two labels
_WIDE = 5  # the slowest over the fastest, from which a logarithmic axis is easier to read
_COLOURS = ("#3b6fd4", "#d9662c", "#2f9e6e", "#a34fb8", "#b8860b", "#c2385a", "#5b6b7a")


@dataclass(frozen=True, slots=True)
class Theme:
    """Inks of a page."""

    name: str
    paper: str
    ink: str
    faint: str

    def settings(self) -> Any:
        """For matplotlib."""
        return {
            "figure.facecolor": self.paper,
            "axes.facecolor": self.paper,
            "savefig.facecolor": self.paper,
            "text.color": self.ink,
            "axes.labelcolor": self.ink,
            "axes.edgecolor": self.faint,
            "axes.prop_cycle": cycler(color=_COLOURS),
            "xtick.color": self.ink,
            "ytick.color": self.ink,
            "grid.color": self.faint,
            "grid.alpha": 0.35,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 9,
            "axes.titlesize": 9.5,
            "axes.titlelocation": "left",
            "legend.frameon": False,
            "legend.fontsize": 8,
        }


THEMES = (
    Theme("light", "#ffffff", "#1c232b", "#b8c0c8"),
    Theme("dark", "#14181d", "#e4e8ec", "#4a545e"),
)
Drawing = Callable[[Figure, Theme], None]


def draw(drawing: Drawing, size: tuple[float, float], file: Path) -> list[Path]:
    """Both versions of a picture, as `NAME-light.png` and `NAME-dark.png`; `size` in inches."""
    written = []
    for theme in THEMES:
        with matplotlib.rc_context(theme.settings()):
            figure = Figure(figsize=size, layout="constrained")
            drawing(figure, theme)
            path = file.with_name(f"{file.name}-{theme.name}.png")
            figure.savefig(path, dpi=DPI)
            written.append(path)
    return written


def frontier(groups: Mapping[str, Sequence[tuple[str, Summary]]]) -> Drawing:
    """Accuracy against median latency; the front of all policies as a line through its points."""

    def drawing(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        everything = [one for points in groups.values() for _, one in points]
        front = pareto(everything)
        axes.step(
            [1e3 * one.p50_s for one in front],
            [100 * one.accuracy for one in front],
            where="post", color=theme.faint, linewidth=6, alpha=0.5, zorder=1,
            solid_capstyle="round", label="Pareto front",
        )  # fmt: skip
        for place, (group, points) in enumerate(groups.items()):
            colour = _COLOURS[place % len(_COLOURS)]
            ordered = sorted(points, key=lambda point: point[1].p50_s)
            x = np.array([1e3 * one.p50_s for _, one in ordered])
            y = np.array([100 * one.accuracy for _, one in ordered])
            spread = [
                [1e3 * (one.p50_s - one.p50_interval[0]) for _, one in ordered],
                [1e3 * (one.p50_interval[1] - one.p50_s) for _, one in ordered],
            ]
            doubt = [
                [100 * (one.accuracy - one.accuracy_interval[0]) for _, one in ordered],
                [100 * (one.accuracy_interval[1] - one.accuracy) for _, one in ordered],
            ]
            axes.errorbar(
                x, y, np.maximum(doubt, 0), np.maximum(spread, 0), fmt="o", markersize=5,
                color=colour, elinewidth=1, alpha=0.95, label=group, zorder=3,
            )  # fmt: skip
            named = [
                (label, at_x, at_y) for (label, _), at_x, at_y in zip(ordered, x, y, strict=True)
            ]
            for label, at_x, at_y in _merged(named, max(1e3 * one.p50_s for one in everything)):
                axes.annotate(
                    label, (at_x, at_y), xytext=(5, -9), textcoords="offset points",
                    fontsize=7, color=colour,
                )  # fmt: skip
        times = [one.p50_s for one in everything]
        if max(times) > _WIDE * min(times):
            _milliseconds(axes)
        else:
            axes.set_xlim(0, 1.12e3 * max(times))
        top = max(100 * one.accuracy_interval[1] for one in everything)
        axes.set_ylim(top=min(103, top + 4))
        axes.set_xlabel("median latency, ms")
        axes.set_ylabel("right answers, %")
        axes.legend(loc="lower right")

    return drawing


def _merged(
    points: Sequence[tuple[str, float, float]], width: float
) -> list[tuple[str, float, float]]:
    """Labels of points, those of neighbours as one where two would be written over each other."""
    found: list[tuple[str, float, float]] = []
    for label, x, y in points:
        near = found and x - found[-1][1] < 0.04 * width and abs(y - found[-1][2]) < _CLOSE
        if near:
            before, at_x, at_y = found[-1]
            found[-1] = (f"{before}, {label}", at_x, at_y)
        else:
            found.append((label, x, y))
    return found


def curves(
    by_task: Mapping[str, Sequence[tuple[float, int, int]]], label: str, is_log: bool = True
) -> Drawing:
    """A small plot a task: the share of right answers over a setting, with Wilson intervals.

    Points are (setting, right, count).
    """

    def drawing(figure: Figure, theme: Theme) -> None:
        columns = min(5, len(by_task))
        rows = -(-len(by_task) // columns)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(by_task):
                axes.set_visible(False)
                continue
            task, points = list(by_task.items())[place]
            x = [point[0] for point in points]
            shares = [100 * right / count for _, right, count in points]
            bounds = [proportion_interval(right, count) for _, right, count in points]
            axes.fill_between(
                x, [100 * low for low, _ in bounds], [100 * high for _, high in bounds],
                alpha=0.2, linewidth=0,
            )  # fmt: skip
            axes.plot(x, shares, "o-", markersize=3, linewidth=1.4)
            axes.set_title(task)
            axes.set_ylim(-3, 103)
            if is_log:
                axes.set_xscale("log", base=2)
                axes.set_xticks(x)
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.xaxis.set_minor_formatter(NullFormatter())
                axes.tick_params("x", labelsize=7)
        figure.supxlabel(label, fontsize=9)
        figure.supylabel("right answers, %", fontsize=9)

    return drawing


def steps_histogram(by_task: Mapping[str, Sequence[int]], cap: int) -> Drawing:
    """How many steps canvases took, task by task, under one cap."""

    def drawing(figure: Figure, theme: Theme) -> None:
        columns = min(5, len(by_task))
        rows = -(-len(by_task) // columns)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(by_task):
                axes.set_visible(False)
                continue
            task, steps = list(by_task.items())[place]
            weights = np.full(len(steps), 100 / max(1, len(steps)))
            axes.hist(steps, bins=np.arange(0.5, cap + 1.5), weights=weights)
            mean = float(np.mean(steps)) if steps else 0.0
            axes.axvline(mean, color=theme.ink, linewidth=1, linestyle=":")
            axes.set_title(f"{task}, mean {mean:.1f}")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        figure.supxlabel(f"steps a canvas, at most {cap}", fontsize=9)
        figure.supylabel("canvases, %", fontsize=9)

    return drawing


def fix_harm(summaries: Sequence[tuple[str, Summary]]) -> Drawing:
    """Wrong drafts put right, to the right, and right drafts put wrong, to the left."""

    def drawing(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        names = [name for name, _ in summaries][::-1]
        fixes = [one.fixes for _, one in summaries][::-1]
        harms = [one.harms for _, one in summaries][::-1]
        most = max([1, *fixes, *harms])
        left = [-harm for harm in harms]
        axes.barh(names, fixes, color=_COLOURS[2], height=0.62, label="fixed: wrong, then right")
        axes.barh(names, left, color=_COLOURS[5], height=0.62, label="harmed: right, then wrong")
        for place, (fixed, harmed) in enumerate(zip(fixes, harms, strict=True)):
            axes.text(fixed + most * 0.02, place, f"{fixed}", va="center", fontsize=8)
            axes.text(
                -harmed - most * 0.02, place, f"{harmed}", va="center", ha="right", fontsize=8
            )
        axes.set_xlim(-1.15 * max([0.12 * most, *harms]), 1.15 * most)
        axes.set_ylim(-0.8, len(names) - 0.2)
        axes.axvline(0, color=theme.ink, linewidth=0.8)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("answers")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):g}"))
        figure.legend(loc="outside upper center", ncols=2)

    return drawing


def reliability(records: Sequence[Record], bins: int = 10) -> Drawing:
    """Whether a canvas's certainty, exp(-mean entropy) at its last step, tells right from wrong."""
    drafts = [(r, canvas) for r in records for canvas in r.canvases if r.was_right is not None]
    sure = np.array([math.exp(-canvas[2]) for _, canvas in drafts])
    right = np.array([bool(record.was_right) for record, _ in drafts])

    def drawing(figure: Figure, theme: Theme) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        order = np.argsort(sure)
        for part in np.array_split(order, min(bins, max(1, len(order) // 20))):
            if not len(part):
                continue
            share, at = right[part].mean(), sure[part].mean()
            low, high = proportion_interval(int(right[part].sum()), len(part))
            top.errorbar(
                at, 100 * share, [[100 * max(0.0, share - low)], [100 * max(0.0, high - share)]],
                fmt="o", color=_COLOURS[0], elinewidth=1,
            )  # fmt: skip
        top.plot([0, 1], [0, 100], color=theme.faint, linestyle="--", linewidth=1)
        top.set_ylim(-3, 103)
        top.set_ylabel("right drafts, %")
        bottom.hist(sure, bins=np.linspace(0, 1, 41), color=_COLOURS[0])
        bottom.set_yscale("log")
        bottom.set_ylabel("canvases")
        bottom.set_xlabel("certainty at the last step, exp(-mean entropy)")
        bottom.set_xlim(0, 1.02)

    return drawing


def predictions(records: Sequence[Record]) -> Drawing:
    """Predicted median against what requests took, and how many kept the predicted p95."""
    known = [r for r in records if r.error is None and r.predicted_p50_s > 0 and r.seconds > 0]
    predicted = 1e3 * np.array([record.predicted_p50_s for record in known])
    actual = 1e3 * np.array([record.seconds for record in known])
    kept = np.mean([record.seconds <= record.predicted_p95_s for record in known])
    error = float(np.median(np.abs(np.log(actual / predicted))))

    def drawing(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        axes.scatter(predicted, actual, s=5, alpha=0.18, linewidths=0, color=_COLOURS[0])
        low = float(min(predicted.min(), np.quantile(actual, 0.001)))
        high = float(max(predicted.max(), np.quantile(actual, 0.999)))
        axes.plot([low, high], [low, high], color=theme.ink, linewidth=1)
        axes.set_xlim(low * 0.8, high * 1.25)
        axes.set_ylim(low * 0.8, high * 1.25)
        axes.set_title(
            f"half are within {100 * (math.exp(error) - 1):.0f} %; "
            f"{100 * kept:.1f} % keep their predicted p95"
        )
        _milliseconds(axes)
        _milliseconds(axes, "y")
        axes.set_xlabel("predicted median, ms")
        axes.set_ylabel("measured, ms")

    return drawing


def _milliseconds(axes: Any, direction: str = "x") -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5."""
    getattr(axes, f"set_{direction}scale")("log")
    axis = getattr(axes, f"{direction}axis")
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
