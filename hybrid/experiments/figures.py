"""The figures of a report: curves, histograms, fixes and harms, predictions.

Every function takes values and returns what draws them; colours, fonts and files are in `theme`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from hybrid.experiments.records import Record
from hybrid.experiments.statistics import Interval
from hybrid.experiments.summary import Summary
from hybrid.experiments.theme import Drawing, Theme, milliseconds, panels

Point = tuple[float, float, Interval]  # a setting, the share of right answers, its interval
Change = tuple[int, int, int]  # fixed, harmed, answers
_LEGEND_COLUMNS = 4
_MANY = 1000  # points, which are drawn smaller than few
_DIGIT, _GAP = 0.046, 0.045  # of a small axis: the width of a digit, and room between numbers


def curves(
    by_task: Mapping[str, Mapping[str, Sequence[Point]]],
    label: str,
    baseline: Mapping[str, float],
    baseline_name: str,
    quality: str = "right answers, %",
) -> Drawing:
    """A small plot for each task: accuracy over a setting, a line for each group, with intervals.

    `baseline` is the accuracy of another policy by task, drawn as a dashed line.
    """
    groups = list(dict.fromkeys(group for lines in by_task.values() for group in lines))
    values = sorted(
        {x for lines in by_task.values() for line in lines.values() for x, _, _ in line}
    )

    def drawing(figure: Figure, theme: Theme) -> None:
        for axes, (task, lines) in zip(panels(figure, list(by_task)), by_task.items(), strict=True):
            if task in baseline:
                axes.axhline(
                    100 * baseline[task], color=theme.text, linewidth=1, linestyle=(0, (4, 3)),
                    alpha=0.7, label=baseline_name,
                )  # fmt: skip
            for index, group in enumerate(groups):
                if group not in lines:
                    continue
                colour, marker = theme.series(index)
                x = [point[0] for point in lines[group]]
                y = [100 * right for _, right, _ in lines[group]]
                low, high = ([100 * bound[side] for *_, bound in lines[group]] for side in (0, 1))
                axes.fill_between(x, low, high, alpha=0.18, linewidth=0, color=colour)
                axes.plot(
                    x, y, marker + "-", markersize=3, linewidth=1.3, color=colour, label=group
                )
            axes.set_ylim(-4, 104)
            if values[0] > 0:
                axes.set_xscale("log", base=2)
                axes.xaxis.set_minor_locator(NullLocator())
                axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xticks(_apart(values))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.tick_params("x", labelsize=7.5)
        figure.supxlabel(label, fontsize=9)
        figure.supylabel(quality, fontsize=9)
        handles: dict[str, Any] = {}
        for axes in figure.axes:
            handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(
            list(handles.values()), list(handles), loc="outside upper left",
            ncols=min(_LEGEND_COLUMNS, len(handles)),
        )  # fmt: skip

    return drawing


def _apart(values: Sequence[float]) -> list[float]:
    """Values whose numbers do not touch on the axis, the ends among them."""
    scale = math.log2 if values[0] > 0 else float
    low, width = scale(values[0]), max(scale(values[-1]) - scale(values[0]), 1e-9)
    kept = [values[0]]
    for value in values[1:]:
        index, before = ((scale(one) - low) / width for one in (value, kept[-1]))
        if index - before >= _room(kept[-1], value) and 1 - index >= _room(value, values[-1]):
            kept.append(value)
    return [*kept, values[-1]] if values[-1] > kept[-1] else kept


def _room(left: float, right: float) -> float:
    """What two numbers need between their middles, as a share of the axis."""
    return _GAP + _DIGIT * (len(f"{left:g}") + len(f"{right:g}")) / 2


def steps_histogram(by_task: Mapping[str, Sequence[int]], cap: int) -> Drawing:
    """How many steps canvases took, task by task, under one cap."""

    def drawing(figure: Figure, theme: Theme) -> None:
        means = {task: float(np.mean(steps)) for task, steps in by_task.items() if steps}
        names = [f"{task}, mean {means.get(task, 0):.1f}" for task in by_task]
        for axes, (task, steps) in zip(panels(figure, names), by_task.items(), strict=True):
            weights = np.full(len(steps), 100 / max(1, len(steps)))
            edges = np.arange(0.5, cap + 1.5)
            axes.hist(steps, bins=edges, weights=weights, color=theme.colours[0])
            axes.axvline(means.get(task, 0), color=theme.text, linewidth=1, linestyle=":")
            axes.set_xlim(0, cap + 1)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        figure.supxlabel(f"denoising steps a canvas, at most {cap}", fontsize=9)
        figure.supylabel("canvases, %", fontsize=9)

    return drawing


def fix_harm(summaries: Sequence[tuple[str, Summary]]) -> Drawing:
    """Per cent of drafts: wrong ones put right and, to the left, right ones put wrong."""

    def drawing(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        names = [name for name, _ in summaries][::-1]
        parts = [one.fixes + one.harms + one.kept_right + one.kept_wrong for _, one in summaries]
        counts = [max(1, part) for part in parts][::-1]
        fixes = [100 * one.fixes / n for (_, one), n in zip(summaries[::-1], counts, strict=True)]
        harms = [100 * one.harms / n for (_, one), n in zip(summaries[::-1], counts, strict=True)]
        most = max([1.0, *fixes, *harms])
        room = 0.08 * (max(fixes) + max(harms) + 1)  # for the numbers
        left = [-harm for harm in harms]
        axes.barh(names, fixes, color=theme.improved, height=0.62, label="fixed: wrong, then right")
        axes.barh(names, left, color=theme.worsened, height=0.62, label="harmed: right, then wrong")
        for index, (_, one) in enumerate(summaries[::-1]):
            axes.text(fixes[index] + most * 0.015, index, f"{one.fixes}", va="center", fontsize=7.5)
            axes.text(
                -harms[index] - most * 0.015, index, f"{one.harms}", va="center", ha="right",
                fontsize=7.5,
            )  # fmt: skip
        axes.set_xlim(-max(harms) - room, max(fixes) + room)
        axes.set_ylim(-0.8, len(names) - 0.2)
        axes.axvline(0, color=theme.text, linewidth=0.8)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("drafts, % (numbers beside the bars: answers)")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):g}"))
        figure.legend(loc="outside upper right", ncols=2)

    return drawing


def fix_harm_matrix(changes: Mapping[str, Mapping[str, Change]]) -> Drawing:
    """By policy (rows) and task (columns): fixed and harmed drafts, coloured by their balance."""
    rows = list(changes)
    tasks = list(dict.fromkeys(task for by_task in changes.values() for task in by_task))

    def drawing(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        colours = LinearSegmentedColormap.from_list(
            "", [theme.worsened, theme.background, theme.improved]
        )
        balance = np.zeros((len(rows), len(tasks)))
        for y, row in enumerate(rows):
            for x, task in enumerate(tasks):
                fixed, harmed, count = changes[row].get(task, (0, 0, 0))
                balance[y, x] = (fixed - harmed) / max(1, count)
                is_empty = fixed == harmed == 0
                said = "·" if is_empty else f"+{fixed} −{harmed}"  # noqa: RUF001
                axes.text(
                    x, y, said, ha="center", va="center", fontsize=7,
                    color=theme.on(colours((1 + balance[y, x]) / 2)), alpha=0.5 if is_empty else 1,
                )  # fmt: skip
        image = axes.imshow(balance, cmap=colours, vmin=-1, vmax=1, aspect="auto")
        axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(rows)), rows)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        bar = figure.colorbar(
            image, ax=axes, shrink=0.8, pad=0.02, label="fixed minus harmed, % of drafts"
        )
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _signed(100 * value)))
        bar.outline.set_visible(False)

    return drawing


def _signed(value: float) -> str:
    return f"{value:+.0f}".replace("-", "\N{MINUS SIGN}") if round(value) else "0"


def predictions(records: Sequence[Record]) -> Drawing:
    """Predicted median against what requests took, and how many kept the predicted p95; all of
    them were answered and predicted.
    """
    predicted = 1e3 * np.array([record.predicted_p50_s for record in records])
    actual = 1e3 * np.array([record.seconds for record in records])
    modes = np.array([record.mode for record in records])
    kept = np.mean([record.seconds <= record.predicted_p95_s for record in records])
    error = float(np.median(np.abs(np.log(actual / predicted))))
    size, alpha = (4, 0.3) if len(records) > _MANY else (16, 0.7)

    def drawing(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        low = float(min(predicted.min(), np.quantile(actual, 0.001)))
        high = float(max(predicted.max(), np.quantile(actual, 0.999)))
        axes.plot([low, high], [low, high], color=theme.text, linewidth=0.8, alpha=0.7)
        for index, mode in enumerate(dict.fromkeys(modes)):
            colour, _ = theme.series(index)
            axes.scatter(
                predicted[modes == mode], actual[modes == mode], s=size, alpha=alpha, linewidths=0,
                color=colour, label=mode, rasterized=True,
            )  # fmt: skip
        axes.set_xlim(low * 0.8, high * 1.25)
        axes.set_ylim(low * 0.8, high * 1.25)
        axes.set_title(
            f"half within {100 * (math.exp(error) - 1):.0f} % of the prediction; "
            f"{100 * kept:.1f} % keep the predicted p95 (n = {len(records):,})"
        )
        milliseconds(axes)
        milliseconds(axes, "y")
        axes.set_xlabel("predicted median, ms")
        axes.set_ylabel("measured, ms")
        legend = axes.legend(markerscale=3, title="refine mode", alignment="left")
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1)

    return drawing
