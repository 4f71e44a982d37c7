"""Tables of banned tokens in device memory."""

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from hybrid.engine.banned_tokens import NO_TOKEN, WIDTHS, BannedTokens
from hybrid.engine.canvases import Canvases, Start
from hybrid.engine.model import EngineModel
from hybrid.engine.random_weights import random_weights
from hybrid.kernels.accept import FREE
from tests.engine.test_engine_kernels import CANVAS, geometry

ROWS, LENGTH, CPU = 3, 5, torch.device("cpu")
pairs = st.frozensets(st.tuples(st.integers(0, LENGTH - 1), st.integers(0, 30)), max_size=25)


@given(st.lists(st.tuples(st.integers(0, ROWS - 1), pairs), max_size=8))
def test_the_table_holds_what_was_set_last(
    changes: list[tuple[int, frozenset[tuple[int, int]]]],
) -> None:
    banned, expected = BannedTokens(ROWS, LENGTH, CPU), [frozenset[tuple[int, int]]()] * ROWS
    for row, bans in changes:
        banned.set(row, bans)
        expected[row] = bans
    most = max(max(Counter(p for p, _ in bans).values(), default=0) for bans in expected)
    if not most:
        assert banned.width == 0
        return
    assert banned.width in (*WIDTHS, 32)
    for row, bans in enumerate(expected):
        table = banned.table(banned.width)[row].tolist()
        found = {(p, t) for p, tokens in enumerate(table) for t in tokens if t != NO_TOKEN}
        assert found == bans


def test_tables_stay_where_they_are() -> None:
    """A captured graph reads them at their addresses."""
    banned = BannedTokens(ROWS, LENGTH, CPU)
    banned.set(0, [(0, 1)])
    address = banned.table(1).data_ptr()
    banned.set(1, [(0, 1), (0, 2)])
    banned.set(1, ())
    assert (banned.width, banned.table(1).data_ptr()) == (1, address)


def test_a_step_writes_no_banned_token() -> None:
    config = geometry()
    model = EngineModel(config, random_weights(config, CPU, torch.bfloat16))
    with torch.inference_mode():
        cache = model.new_cache(1, 64)
        canvases, free = Canvases(model, 1), [FREE] * CANVAS
        start = Start(1, 0, 0, 4, 1.0, 0.4, 0.8, 1, 0.0, [3] * CANVAS, free)
        buffers, rows = model.kv_buffers(cache), torch.tensor([0])
        canvases.begin(0, start)
        canvases.step(buffers, rows)
        favourite = int(canvases.best_ids[0, 4])
        canvases.begin(0, start)
        canvases.banned_tokens.set(0, [(4, favourite)])
        canvases.step(buffers, rows, canvases.banned_tokens.width)
        assert int(canvases.best_ids[0, 4]) != favourite
