"""Reliability diagrams: whether the certainty of a draft predicts that it is right.

Drafts of many policies are pooled, and most share their prompts. Intervals therefore resample
prompts, not drafts, or they would be too narrow.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from hybrid.experiments.records import Record
from hybrid.experiments.statistics import Interval, calibration_error, share_interval
from hybrid.experiments.theme import Drawing, Theme, panels

_BINS, _LEAST_IN_BIN = 10, 20


def reliability(records: Sequence[Record]) -> Drawing:
    """Whether a draft's certainty, exp(-mean entropy at commit), tells right from wrong,
    in bins of equal counts; n is the number of prompts.
    """
    by_task: dict[str, list[Record]] = {"all tasks": list(records)}
    for record in records:
        by_task.setdefault(record.task, []).append(record)
    names, drawn = [], []
    for task, found in by_task.items():
        sure = np.array([certainty(record) for record in found])
        right = np.array([bool(record.was_right) for record in found])
        names.append(f"{task}, ECE {calibration_error(sure, right, _BINS):.2f}")
        order = np.argsort(sure, kind="stable")
        bins = np.array_split(order, max(1, min(_BINS, len(order) // _LEAST_IN_BIN)))
        items = len({record.pair_key[:2] for record in found})
        drawn.append((items, [_bin([found[one] for one in part]) for part in bins]))
    low_end = min(0.9, *(sure for _, bins in drawn for sure, _, _ in bins))

    def drawing(figure: Figure, theme: Theme) -> None:
        for axes, (items, bins) in zip(panels(figure, names, 4), drawn, strict=True):
            axes.plot([0, 1], [0, 100], color=theme.text, linestyle="--", linewidth=0.8, alpha=0.6)
            for sure, share, (low, high) in bins:
                bounds = [[100 * max(0.0, share - low)], [100 * max(0.0, high - share)]]
                axes.errorbar(
                    sure, 100 * share, bounds, fmt="o", markersize=3.5, color=theme.colours[0],
                    elinewidth=0.9,
                )  # fmt: skip
            axes.text(0.03, 0.5, f"n = {items}", transform=axes.transAxes, fontsize=7.5)
            axes.set_xlim(low_end - 0.02, 1.02)
            axes.set_ylim(-4, 104)
        figure.supxlabel(
            "certainty of a draft, exp(\N{MINUS SIGN}mean entropy at commit)", fontsize=9
        )
        figure.supylabel("right drafts, %", fontsize=9)

    return drawing


def _bin(records: Sequence[Record]) -> tuple[float, float, Interval]:
    """Mean certainty, the share of right drafts, and its interval."""
    right = [float(bool(record.was_right)) for record in records]
    interval = share_interval([record.pair_key[:2] for record in records], right)
    return float(np.mean([certainty(one) for one in records])), float(np.mean(right)), interval


def certainty(record: Record) -> float:
    """exp of minus the mean entropy (nats) of a draft's canvases at their last step: 0 to 1."""
    return math.exp(-sum(entropy for _, _, entropy in record.canvases) / len(record.canvases))
