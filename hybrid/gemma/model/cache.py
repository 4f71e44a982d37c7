"""Keys and values of everything a row has read, and where a pass writes and reads them.

A token at position p lives in slot ``p % slots`` of its row. Full layers have a slot for every
token; sliding layers keep a ring of the window and of `spare` tokens more, which is what can be
forgotten again. A canvas being denoised borrows the slots after the row's last token and never
advances the row, so keys need not be copied to be read together. The last slot of every row
takes padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybrid.gemma.config import GemmaConfig, LayerConfig, LayerKind

Index = slice | Tensor
Ints = TypeVar("Ints", Tensor, NDArray[np.int64])
MIN_ROLLBACK_TOKENS = 256  # tokens that every cache can forget again, whatever the canvas


@dataclass(frozen=True, slots=True)
class Span:
    """One pass in one kind of layer: the slots to write and to read, and what is hidden.

    `rows` None means all. `written` are consecutive slots, or the row numbers [R, 1] and slots
    [R, T] of every token. `mask` is additive and shaped as `attention_torch` takes it, None where
    nothing is hidden.
    """

    rows: Index | None
    written: range | tuple[Tensor, Tensor]
    seen: range
    mask: Tensor | None

    def write(self, cache: Tensor, new: Tensor) -> None:
        """Put ``new`` [R, T, heads, D] into its slots of ``cache`` [B, slots, heads, D]."""
        if isinstance(self.written, tuple):
            cache[self.written] = new
        else:
            part = cache if self.rows is None else cache[self.rows]
            part.narrow(1, self.written.start, len(self.written)).copy_(new)

    def read(self, cache: Tensor) -> Tensor:
        """The slots [R, S, heads, D] that the pass sees: a view unless rows are scattered."""
        part = cache.narrow(1, self.seen.start, len(self.seen))
        return part if self.rows is None else part[self.rows]


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Which rows read how many of `tokens` right-padded tokens, after how many earlier ones."""

    rows: tuple[int, ...]
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    tokens: int
    causal: bool

    @property
    def start(self) -> int | None:
        """Where all rows start, None if they differ or if there is padding."""
        uniform = len(set(self.starts)) == 1 and set(self.lengths) == {self.tokens}
        return self.starts[0] if uniform else None

    def row_index(self, batch_size: int, device: torch.device) -> Index | None:
        """The rows as a slice where they are consecutive, else as int64 [R]; None for all."""
        first, count = self.rows[0], len(self.rows)
        if self.rows == tuple(range(first, first + count)):
            return None if count == batch_size else slice(first, first + count)
        return torch.tensor(self.rows, device=device)


def default_spare(config: GemmaConfig) -> int:
    """How many of a row's last tokens a cache can forget where nobody says."""
    return max(config.canvas_length, MIN_ROLLBACK_TOKENS)


def flat_slots(rows: Ints, positions: Ints, slots: int) -> Ints:
    """Where tokens are in a cache seen as [rows * (slots + 1), ...], as torch or numpy integers.

    A row's last slot is for padding; the others are a ring.
    """
    return rows * (slots + 1) + positions % slots


def slots_by_kind(config: GemmaConfig, capacity: int, spare: int) -> dict[LayerKind, int]:
    """Slots of a row without that for padding: for all its tokens and a canvas, or a ring."""
    whole = capacity + config.canvas_length
    ring = config.sliding_window - 1 + spare + config.canvas_length
    if all(layer.kind == "full" for layer in config.layers):
        ring = whole
    return {"full": whole, "sliding": min(whole, ring)}


class Cache:
    """Room for `capacity` tokens in each of `batch_size` rows.

    `memory`, if given, are the layers' keys and values [B, slots + 1, heads, D] to work in, with B
    at least `batch_size` and slots as `slots_by_kind` says.
    """

    def __init__(
        self,
        config: GemmaConfig,
        batch_size: int,
        capacity: int,
        spare: int,
        device: torch.device,
        dtype: torch.dtype,
        memory: tuple[list[Tensor], list[Tensor]] | None = None,
    ) -> None:
        if min(batch_size, capacity, spare) < 1:
            raise ValueError(f"{batch_size=}, {capacity=} and {spare=} must all be above zero")
        self.capacity = capacity
        self._window = config.sliding_window
        self._groups = {
            (layer.kind, config.num_attention_heads // layer.num_key_value_heads)
            for layer in config.layers
        }
        self._slots = slots_by_kind(config, capacity, spare)
        self._counts = [0] * batch_size
        self._written = [0] * batch_size  # positions below this were written at some time
        self._device, self._dtype = device, dtype
        self._latest: tuple[AttentionMetadata, dict[tuple[LayerKind, int], Span]] | None = None
        # Ordinary tensors even under inference_mode, so that a cache outlives the context.
        with torch.inference_mode(False):
            self.keys, self.values = memory or (
                [self._zeros(layer, batch_size) for layer in config.layers],
                [self._zeros(layer, batch_size) for layer in config.layers],
            )

    def _zeros(self, layer: LayerConfig, batch_size: int) -> Tensor:
        shape = (batch_size, self._slots[layer.kind] + 1, layer.num_key_value_heads, layer.head_dim)
        return torch.zeros(shape, device=self._device, dtype=self._dtype)

    @property
    def lengths(self) -> Tensor:
        """Tokens read so far per row, int64 [B]; a copy."""
        return torch.tensor(self._counts, device=self._device)

    def count(self, row: int) -> int:
        """Tokens that the row has read so far."""
        return self._counts[row]

    def clear(self, row: int) -> None:
        """Forget all of a row, for another text."""
        self._counts[row] = self._written[row] = 0

    def rollback(self, rows: Sequence[int] | Tensor, lengths: Sequence[int] | Tensor) -> None:
        """Forget all but the first `lengths` tokens of each of `rows`.

        Raises ValueError if a sliding layer no longer holds the window before that point.
        """
        for row, length in zip(to_ints(rows), to_ints(lengths), strict=True):
            if not 0 <= length <= self._counts[row]:
                raise ValueError(f"row {row} has {self._counts[row]} tokens, cannot keep {length}")
            if not self.can_rollback(row, length):
                raise ValueError(
                    f"row {row}: the window before token {length} is overwritten; "
                    "make the cache with more spare slots"
                )
            self._counts[row] = length

    def can_rollback(self, row: int, length: int) -> bool:
        """Whether the row can still be cut to its first `length` tokens."""
        oldest_held = self._written[row] - self._slots["sliding"]
        return max(0, length - self._window + 1) >= oldest_held

    def max_pass_tokens(self, metadata: AttentionMetadata) -> int:
        """How many tokens one causal pass may read without overwriting its own window."""
        slots = self._slots["sliding"]
        return max(slots - max(metadata.starts), slots - self._window + 1)

    def metadata(
        self, rows: Sequence[int], lengths: Sequence[int], tokens: int, causal: bool
    ) -> AttentionMetadata:
        """A pass of `tokens` right-padded tokens after what the rows have read."""
        starts = tuple(self._counts[row] for row in rows)
        limit = self.capacity if causal else self._slots["full"]
        for row, start, length in zip(rows, starts, lengths, strict=True):
            if start + length > limit:
                raise ValueError(f"row {row}: {start} + {length} tokens exceed capacity {limit}")
        return AttentionMetadata(tuple(rows), starts, tuple(lengths), tokens, causal)

    def spans(self, metadata: AttentionMetadata) -> dict[tuple[LayerKind, int], Span]:
        """The pass's span for every kind of layer and number of query heads per key head."""
        if self._latest is None or self._latest[0] != metadata:
            spans = {
                (kind, group): self._span(metadata, kind, group) for kind, group in self._groups
            }
            self._latest = (metadata, spans)
            self.mark_written(metadata)
        return self._latest[1]

    def mark_written(self, metadata: AttentionMetadata) -> None:
        """The pass writes its slots, whose earlier tokens are lost to `rollback`."""
        for row, start, length in zip(
            metadata.rows, metadata.starts, metadata.lengths, strict=True
        ):
            self._written[row] = max(self._written[row], start + length)

    def advance(self, metadata: AttentionMetadata) -> None:
        """The causal pass is done: its tokens have been read."""
        for row, start, length in zip(
            metadata.rows, metadata.starts, metadata.lengths, strict=True
        ):
            self._counts[row] = start + length

    def _span(self, metadata: AttentionMetadata, kind: LayerKind, group: int) -> Span:
        start, end = metadata.start, max(metadata.starts) + metadata.tokens
        rows = metadata.row_index(len(self._counts), self._device)
        if start is None or end > self._slots[kind] or isinstance(rows, Tensor):
            return self._scattered_span(metadata, kind, group, rows)
        first = max(0, start - self._window + 1) if kind == "sliding" else 0
        mask = None
        if metadata.causal and metadata.tokens > 1:
            queries = torch.arange(start, end, device=self._device)[:, None]
            keys = torch.arange(first, end, device=self._device)
            hidden = keys > queries
            if kind == "sliding":
                hidden |= keys <= queries - self._window
            mask = self._mask(hidden[None], group)
        return Span(rows, range(start, end), range(first, end), mask)

    def _scattered_span(
        self, metadata: AttentionMetadata, kind: LayerKind, group: int, rows: Index | None
    ) -> Span:
        """Rows at different places, padding, or a ring that wraps around in this pass."""
        slots = self._slots[kind]
        starts = torch.tensor(metadata.starts, device=self._device)[:, None]
        ends = starts + torch.tensor(metadata.lengths, device=self._device)[:, None]
        positions = starts + torch.arange(metadata.tokens, device=self._device)
        write = torch.where(positions < ends, positions % slots, slots)
        row_numbers = torch.tensor(metadata.rows, device=self._device)[:, None]
        seen = min(slots, max(metadata.starts) + max(metadata.lengths))
        last = ends - 1
        held = last - (last - torch.arange(seen, device=self._device)) % slots  # [R, S]
        if metadata.causal:
            queries = positions.minimum(last)[..., None]  # padding looks where the last token does
            hidden = (held[:, None] < 0) | (held[:, None] > queries)
            if kind == "sliding":
                hidden |= held[:, None] <= queries - self._window
        else:
            hidden = (held < 0)[:, None]
            if kind == "sliding":
                hidden |= (held < starts - self._window + 1)[:, None]
        mask = self._mask(hidden, group if metadata.causal else 1)
        return Span(rows, (row_numbers, write), range(seen), mask)

    def _mask(self, hidden: Tensor, group: int) -> Tensor:
        """An additive mask [R, 1, T * group, S] of what is hidden, bool [R, T, S].

        The least finite number instead of minus infinity keeps rows that see nothing finite.
        """
        mask = torch.zeros(hidden.shape, device=self._device, dtype=self._dtype)
        mask.masked_fill_(hidden, torch.finfo(self._dtype).min)
        return mask.repeat_interleave(group, dim=1)[:, None]


def to_ints(numbers: Sequence[int] | Tensor) -> list[int]:
    """Rows or lengths as Python integers."""
    return numbers.tolist() if isinstance(numbers, Tensor) else list(numbers)
