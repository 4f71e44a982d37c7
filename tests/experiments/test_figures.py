"""What the pictures of a report must not do: overlap, hide a policy, or say something else."""

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from hybrid.experiments.figures import _apart, curves, fix_harm, fix_harm_matrix
from hybrid.experiments.frontier import frontier
from hybrid.experiments.records import Record
from hybrid.experiments.reliability import reliability
from hybrid.experiments.summary import Summary, summarise
from hybrid.experiments.theme import THEMES, Drawing, Theme
from tests.experiments.test_report import record


def summary(name: str, seconds: float, right: int) -> Summary:
    records = [record(item=n, seconds=seconds, score=float(n < right)) for n in range(100)]
    return summarise(name, records)


def drawn(drawing: Drawing, theme: int = 0) -> Figure:
    with matplotlib.rc_context(THEMES[theme].settings()):
        figure = Figure(figsize=(8.4, 5.0), layout="constrained")
        drawing(figure, THEMES[theme])
        figure.draw_without_rendering()
    return figure


@pytest.fixture
def crowded() -> Figure:
    """Twelve policies within a millisecond and two points, and one far away."""
    points = [(f"{n} steps", summary(f"d {n}", 0.010 + 1e-4 * n, 80 + n % 3)) for n in range(12)]
    far = ("", summary("rewrite", 0.09, 0))
    return drawn(
        frontier({"draft": points, "rewrite": [far]}, {"draft": [[one for _, one in points]]})
    )


def test_labels_of_points_overlap_neither_each_other_nor_the_legend(crowded: Figure) -> None:
    (axes,) = crowded.axes
    notes = [text for text in axes.texts if isinstance(text, Annotation)]
    (legend,) = crowded.legends
    boxes = [note.get_window_extent() for note in notes] + [legend.get_window_extent()]
    assert len(notes) >= 4
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_the_legend_covers_nothing_that_is_drawn(crowded: Figure) -> None:
    (axes,), (legend,) = crowded.axes, crowded.legends
    assert not legend.get_window_extent().overlaps(axes.bbox)


def test_lines_join_what_differs_in_one_field_only() -> None:
    points = [(f"{n}", summary(f"d {n}", 0.010 + 1e-3 * n, 80 + n)) for n in range(4)]
    found = [one for _, one in points]
    (axes,) = drawn(frontier({"draft": points}, {"draft": [found[:2], found[2:]]})).axes
    joined = [
        line for line in axes.lines if line.get_linestyle() == "-" and line.get_alpha() == 0.55
    ]
    assert [len(line.get_xdata()) for line in joined] == [2, 2]  # type: ignore[arg-type]


def test_points_that_lie_on_each_other_share_a_label() -> None:
    points = [(f"{n}", summary(f"d {n}", 0.010 + 1e-6 * (n % 3), 80)) for n in range(3)]
    apart = [("9", summary("d 9", 0.02, 90))]
    (axes,) = drawn(frontier({"draft": [*points, *apart], "other": [("x", points[0][1])]}, {})).axes
    assert [text.get_text() for text in axes.texts] == ["0, 1, 2", "9", "x"]


def test_the_latency_axis_is_where_the_points_are() -> None:
    points = [(f"{n}", summary(f"d {n}", 0.010 + 1e-3 * n, 80)) for n in range(3)]
    (axes,) = drawn(frontier({"draft": points}, {})).axes
    low, high = axes.get_xlim()
    assert 9 < low < 10 and 12 < high < 13


def test_a_policy_far_below_the_front_is_named_instead_of_drawn(crowded: Figure) -> None:
    (axes,) = crowded.axes
    assert [t.get_text() for t in axes.texts if "below" in t.get_text()] == [
        "below: rewrite, 0 % in 90 ms"
    ]
    assert axes.get_ylim()[0] > 50


def test_numbers_at_ticks_do_not_touch() -> None:
    assert _apart([1, 2, 4, 8, 12, 16, 20, 24, 32, 48]) == [1, 2, 4, 8, 16, 48]
    bounds = _apart([0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6])
    assert (bounds[0], bounds[-1]) == (0.01, 1.6)
    assert len(bounds) < 8
    assert _apart([3.0]) == [3.0]


def test_curves_have_a_panel_a_task_and_one_legend() -> None:
    points = [(1.0, 0.3, (0.1, 0.6)), (2.0, 0.8, (0.5, 0.9))]
    by_task = {"a": {"draft": points, "verify": points}, "b": {"draft": points}}
    figure = drawn(curves(by_task, "steps", {"a": 0.9}, "refiner"))
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title("left") for axes in shown] == ["a", "b"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "refiner", "draft", "verify",
    ]  # fmt: skip
    drawn_lines = np.array([line.get_ydata() for line in shown[0].lines[1:]])
    assert drawn_lines.tolist() == [[30, 80]] * 2


def test_drafts_of_one_prompt_by_many_policies_make_no_interval_narrower() -> None:
    rng = np.random.default_rng(0)
    once = [
        record(item=n, draft_score=float(rng.random() < 0.7), canvases=((4, True, rng.random()),))
        for n in range(60)
    ]
    many = [replace(one, condition=condition) for one in once for condition in "abcdefgh"]

    def widths(records: list[Record]) -> list[float]:
        axes = drawn(reliability(records)).axes[0]
        bars = [bar for bars in axes.containers for bar in bars[2]]
        return [float(np.ptp(bar.get_segments()[0][:, 1])) for bar in bars]

    assert np.mean(widths(many)) >= 0.9 * np.mean(widths(once))
    assert [text.get_text() for text in drawn(reliability(many)).axes[0].texts] == ["n = 60"]


def test_the_numbers_beside_the_longest_bars_are_inside() -> None:
    one = replace(summary("verify", 0.01, 90), fixes=185, harms=0, kept_right=315)
    other = replace(one, fixes=0, harms=431, kept_right=69)
    axes = drawn(fix_harm([("verify", one), ("rewrite", other)])).axes[0]
    outside = axes.bbox.padded(-1)
    for text in axes.texts:
        box = text.get_window_extent()
        assert outside.contains(*box.min) and outside.contains(*box.max), text.get_text()


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_numbers_can_be_read_on_every_colour_of_the_matrix(theme: Theme) -> None:
    """Contrast of 3 at least, as WCAG 2 asks of what is not running text."""
    changes = {"p": {f"{n}": (max(n, 0), max(-n, 0), 10) for n in range(-10, 11)}}
    axes = drawn(fix_harm_matrix(changes), THEMES.index(theme)).axes[0]
    (image,) = axes.images
    (balance,) = np.asarray(image.get_array())
    for text, shade in zip(axes.texts, image.to_rgba(balance), strict=True):
        lights = sorted(luminance(colour) + 0.05 for colour in (text.get_color(), shade))
        assert lights[1] / lights[0] >= 3, text.get_text()


def luminance(colour: Any) -> float:
    """Of sRGB, with the exponent that stands for its piecewise curve."""
    red, green, blue = (math.pow(value, 2.2) for value in to_rgb(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_matrix_says_what_was_fixed_and_harmed() -> None:
    changes = {"verify": {"a": (3, 0, 4), "b": (0, 0, 4)}, "rewrite": {"a": (0, 2, 4)}}
    axes = drawn(fix_harm_matrix(changes), theme=1).axes[0]
    said = [text.get_text() for text in axes.texts]
    assert said == ["+3 \N{MINUS SIGN}0", "·", "+0 \N{MINUS SIGN}2", "·"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["verify", "rewrite"]
