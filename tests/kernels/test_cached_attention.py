"""Attention over caches: what each query sees, in float64, position by position."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybrid.kernels import attention
from hybrid.kernels.attention import cached_attention, cached_attention_torch


@dataclass(frozen=True)
class Pass:
    """One call: which row has how many tokens before and in the pass, and what may be seen."""

    query: Tensor
    keys: Tensor
    values: Tensor
    rows: Sequence[int]
    starts: Sequence[int]
    lengths: Sequence[int]
    window: int
    causal: bool

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, int, bool, int]:
        """What follows query, keys and values."""
        places = (self.rows, self.starts, self.lengths)
        rows, starts, lengths = (
            torch.tensor(numbers, dtype=torch.int32, device=self.query.device) for numbers in places
        )
        most_context = max(map(sum, zip(self.starts, self.lengths, strict=True)))
        return rows, starts, lengths, self.window, self.causal, most_context

    def run(self) -> Tensor:
        return cached_attention(self.query, self.keys, self.values, *self.arguments)

    def exact(self) -> list[Tensor]:
        """For each row the output [length, Hq * D] of its valid queries, in float64."""
        slots, group = self.keys.shape[1] - 1, self.query.shape[2] // self.keys.shape[2]
        outputs = []
        for r, (row, start, length) in enumerate(
            zip(self.rows, self.starts, self.lengths, strict=True)
        ):
            output = torch.zeros(length, *self.query.shape[2:], dtype=torch.float64)
            for t in range(length):
                held = [p % slots for p in visible(t, start, length, self.window, self.causal)]
                key, value = (
                    cache[row, held].double().repeat_interleave(group, 1)
                    for cache in (self.keys, self.values)
                )
                scores = torch.einsum("hd,shd->hs", self.query[r, t].double(), key)
                output[t] = torch.einsum("hs,shd->hd", scores.softmax(-1), value)
            outputs.append(output.flatten(1))
        return outputs


def visible(query: int, start: int, length: int, window: int, causal: bool) -> range:
    """The positions that a query of the pass sees."""
    newest = start + query if causal else start + length - 1
    oldest = (newest if causal else start) - window + 1 if window else 0
    return range(max(0, oldest), newest + 1)


def make_pass(
    starts: Sequence[int],
    lengths: Sequence[int],
    *,
    tokens: int,
    slots: int,
    window: int,
    causal: bool,
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 16,
    dtype: torch.dtype = torch.bfloat16,
) -> Pass:
    """Random queries and keys; NaN in every slot that no query may read, the bin included."""
    generator = torch.Generator().manual_seed(slots + sum(starts))
    rows = list(range(len(starts)))[::-1]  # the last cache row belongs to nobody
    caches = []
    for _ in range(2):
        cache = torch.full((len(starts) + 1, slots + 1, heads[1], head_dim), torch.nan)
        for row, start, length in zip(rows, starts, lengths, strict=True):
            oldest = max(0, start - window + 1) if window else 0
            held = [position % slots for position in range(oldest, start + length)]
            assert len(held) <= slots
            cache[row, held] = torch.randn(len(held), heads[1], head_dim, generator=generator)
        caches.append(cache.to(dtype))
    query = torch.randn(len(starts), tokens, heads[0], head_dim, generator=generator).to(dtype)
    return Pass(query, caches[0], caches[1], rows, starts, lengths, window, causal)


def assert_close(actual: Tensor, expected: list[Tensor]) -> None:
    """bfloat16 rounds the weights of the values and the output: each by 2^-9 at most."""
    assert actual.isfinite().all()
    for row, output in zip(actual, expected, strict=True):
        if not len(output):
            continue
        error = row[: len(output)].double().cpu() - output
        assert error.abs().amax() <= 2**-7 * output.abs().amax()
        assert error.square().mean() <= (3e-3) ** 2 * output.square().mean()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 6])
@pytest.mark.parametrize("tokens", [1, 4])
def test_every_query_sees_its_positions(causal: bool, window: int, tokens: int) -> None:
    starts = [0, 1, 5, 6, 7, 9, 17, 3]
    lengths = [tokens] * 6 + [max(1, tokens - 2), 1]
    case = make_pass(
        starts,
        lengths,
        tokens=tokens,
        slots=11 if window else 32,
        window=window,
        causal=causal,
        heads=(6, 2),
        dtype=torch.float64,
    )
    actual = cached_attention_torch(case.query, case.keys, case.values, *case.arguments)
    assert actual.isfinite().all()
    for row, output in zip(actual, case.exact(), strict=True):
        torch.testing.assert_close(row[: len(output)], output, rtol=1e-12, atol=1e-12)


GEOMETRIES = {
    "sliding": ((4, 2), 16),
    "full": ((8, 1), 32),
    "odd group": ((3, 1), 16),
    "no group": ((2, 2), 32),
    "padded columns": ((5, 1), 24),
}


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_kernels_read_all_of_a_canvas(geometry: str, window: int, causal: bool) -> None:
    """Contexts of nothing, one, and around the window's edge; rings that wrap inside a block."""
    heads, head_dim = GEOMETRIES[geometry]
    starts = [0, 1, 39, 40, 41, 150]
    case = make_pass(
        starts,
        [20] * 5 + [7],
        tokens=20,
        slots=77 if window else 201,
        window=window,
        causal=causal,
        heads=heads,
        head_dim=head_dim,
    )
    assert_close(case.run(), case.exact())


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("tokens", [1, 2, 16])
@pytest.mark.parametrize("window", [0, 64])
@pytest.mark.parametrize("causal", [False, True])
def test_kernels_decode(tokens: int, window: int, causal: bool) -> None:
    """Few queries, and slots in whole blocks."""
    case = make_pass(
        [0, 63, 64, 200],
        [tokens, tokens, max(1, tokens - 3), tokens],
        tokens=tokens,
        slots=128 if window else 256,
        window=window,
        causal=causal,
    )
    assert_close(case.run(), case.exact())


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("causal", [False, True])
def test_kernels_read_rings_smaller_than_a_block(causal: bool) -> None:
    case = make_pass([0, 5, 30], [4, 4, 2], tokens=4, slots=11, window=6, causal=causal)
    assert_close(case.run(), case.exact())


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("multiprocessors", [1, 5, 64])
@pytest.mark.parametrize("causal", [False, True])
def test_shares_are_merged(
    multiprocessors: int, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows far shorter than the longest leave shares without positions."""
    monkeypatch.setattr(attention, "multiprocessors", lambda device: multiprocessors)
    case = make_pass([0, 10, 700], [3, 1, 3], tokens=3, slots=720, window=0, causal=causal)
    assert_close(case.run(), case.exact())


@pytest.mark.usefixtures("interpreted")
def test_a_row_knows_nothing_of_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "multiprocessors", lambda device: 16)
    case = make_pass([300, 90], [12, 12], tokens=12, slots=400, window=0, causal=False)
    alike = case.run()
    unlike = replace(case, starts=[300, 2], lengths=[12, 5]).run()
    assert torch.equal(alike[0], unlike[0])


@st.composite
def passes(draw: st.DrawFn) -> Pass:
    tokens, window = draw(st.integers(1, 40)), draw(st.just(0) | st.integers(1, 80))
    count = draw(st.integers(1, 3))
    starts = draw(st.lists(st.integers(0, 300), min_size=count, max_size=count))
    lengths = draw(st.lists(st.integers(0, tokens), min_size=count, max_size=count))
    needed = max(map(sum, zip(starts, lengths, strict=True)))
    if window:
        needed = min(needed, window - 1 + tokens)
    return make_pass(
        starts,
        lengths,
        tokens=tokens,
        slots=max(1, needed) + draw(st.integers(0, 70)),
        window=window,
        causal=draw(st.booleans()),
        heads=draw(st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 2), (8, 1)])),
        head_dim=draw(st.sampled_from([8, 16, 24, 32])),
    )


@pytest.mark.usefixtures("interpreted")
@given(passes(), st.sampled_from([1, 8, 64]))
@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
def test_any_pass(case: Pass, multiprocessors: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "multiprocessors", lambda device: multiprocessors)
        assert_close(case.run(), case.exact())


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("tokens", [1, 20])
def test_a_row_without_anything_to_see_is_finite(tokens: int) -> None:
    case = make_pass([0, 30], [0, 0], tokens=tokens, slots=64, window=0, causal=False)
    assert case.run().isfinite().all()
    assert (
        cached_attention_torch(case.query, case.keys, case.values, *case.arguments).isfinite().all()
    )


@pytest.mark.usefixtures("interpreted")
def test_scores_far_apart_overflow_nothing() -> None:
    case = make_pass([50], [16], tokens=16, slots=80, window=0, causal=True)
    loud = replace(case, query=case.query * 200)
    assert_close(loud.run(), loud.exact())


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("tokens", [1, 16, 256])
@pytest.mark.parametrize("kind", ["sliding", "full"])
@pytest.mark.parametrize("causal", [False, True])
def test_real_sizes(kind: str, tokens: int, rows: int, causal: bool) -> None:
    key_heads, head_dim, window, slots = (
        (8, 256, 1024, 1536) if kind == "sliding" else (2, 512, 0, 4608)
    )
    starts = [4000, 0, 1, 1023, 1024, 1025, 1500, 300][:rows]
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda").bfloat16()

    query = normal(rows, tokens, 16, head_dim) / head_dim**0.5 * 4
    keys, values = (normal(rows, slots + 1, key_heads, head_dim) for _ in range(2))
    case = Pass(query, keys, values, range(rows), starts, [tokens] * rows, window, causal)
    expected = cached_attention_torch(query.float(), keys.float(), values.float(), *case.arguments)
    assert_close(case.run(), [*expected.double().cpu()])


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 256])
def test_a_captured_pass_follows_its_rows(tokens: int) -> None:
    """What differs from step to step is read from the device, so a graph can be replayed."""
    case = make_pass([700], [tokens], tokens=tokens, slots=1280, window=0, causal=False)
    caches = (case.query.cuda(), case.keys.nan_to_num().cuda(), case.values.nan_to_num().cuda())
    rows, starts, lengths, window, causal, _ = case.arguments
    numbers = rows.cuda(), starts.cuda(), lengths.cuda()
    cached_attention(*caches, *numbers, window, causal, 1024)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = cached_attention(*caches, *numbers, window, causal, 1024)
    for start in (0, 31, 700):
        numbers[1].fill_(start)
        graph.replay()
        assert torch.equal(output, cached_attention(*caches, *numbers, window, causal, 1024))
        moved = replace(case, keys=caches[1].cpu(), values=caches[2].cpu(), starts=[start])
        assert_close(output, moved.exact())
