"""What is expected of a plan, from measurements at a few caps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.policies.candidates import interpolate, qualities
from hybrid.policies.latency import LatencyModel
from hybrid.policies.loader import parse_policy
from hybrid.policies.planner import plan
from hybrid.types import RefineMode, Request, Signals

COSTS = LatencyModel(0.001, 0.01, 0.001, 0.002, 0.003, 0.004, 0.0005, 0.006, 1.5, 32)
POINTS = ((1, 0.1), (4, 0.6), (16, 0.9))


@pytest.mark.parametrize(
    ("x", "y"), [(1, 0.1), (0, 0.1), (4, 0.6), (10, 0.75), (16, 0.9), (100, 0.9)]
)
def test_tables_are_linear_between_points_and_flat_outside(x: int, y: float) -> None:
    assert interpolate(POINTS, x) == pytest.approx(y)


@given(st.dictionaries(st.integers(1, 99), st.floats(0, 1), min_size=1), st.integers(0, 120))
def test_tables_keep_to_their_points(table: dict[int, float], x: int) -> None:
    points = tuple(sorted(table.items()))
    assert all(interpolate(points, point) == pytest.approx(y) for point, y in points)
    assert min(table.values()) - 1e-9 <= interpolate(points, x) <= max(table.values()) + 1e-9


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=8),
    st.floats(0, 1),
    st.sampled_from(["cascade", "rewrite", "guide"]),
)
def test_a_guess_is_never_ranked_above_draft_and_refiner(
    drafts: list[float], refiner: float, mode: RefineMode
) -> None:
    found = qualities(drafts, refiner)
    bound = np.maximum(found["none"], found["generate"])
    assert (found[mode] <= bound).all()
    assert found["verify"] == pytest.approx(found["generate"][0])


def test_a_prior_says_so_and_a_table_says_where_it_is_from() -> None:
    policy = "version: 1\ntasks: {a: {}, b: {}}\ndefaults: {refine: {mode: [none, cascade]}}\n"
    table = "quality: {a: {source: published, draft: {4: 0.5}, refiner: 0.9}}\n"
    parsed = parse_policy(policy + table, "p")
    for task, sources in (("a", {"published", "prior"}), ("b", {"prior"})):
        signals = Signals(20, task, "given", 9, 0)
        decided = plan(Request("x"), signals, parsed, COSTS, parsed.quality)
        predicted = [decided.predicted, *(other.predicted for other in decided.rejected)]
        assert {one.quality_source for one in predicted} == sources
