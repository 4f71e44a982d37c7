"""What is expected of a plan, from measurements at a few caps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.policies.candidates import interpolate

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
