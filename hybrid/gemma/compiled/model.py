"""A small model on a CPU whose passes run as compiled ahead of time, where they are.

Which passes those are is in `programs`; all others, and all after one has failed, run as ever. A
compiled pass rounds differently in the last bits, as eager ones of other shapes do.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hybrid.artefacts import ArtefactError, artefact_of, artefacts_folder, read_artefact
from hybrid.cores import available_cores
from hybrid.gemma.compiled.flat_cache import FlatCache
from hybrid.gemma.compiled.library import Library, LibraryError
from hybrid.gemma.compiled.programs import MAX_ROWS, AttentionInputs, kinds_of
from hybrid.gemma.config import GemmaConfig
from hybrid.gemma.model.cache import AttentionMetadata, Cache, default_spare
from hybrid.gemma.model.gemma import GemmaModel, load_model
from hybrid.gemma.model.overflow import is_finite
from hybrid.gemma.model.weights import GemmaWeights
from hybrid.kernels.accept import FREE
from hybrid.kernels.canvas_statistics import CanvasStatistics

MAX_TOKENS = 256  # of a causal pass, which lays out its scores
_PACKED_TOKENS = 128  # of rows that are read as one: each token is scored against all of them
RENOISING = "renoise_row"
_log = logging.getLogger(__name__)
Program = Callable[[Sequence[Tensor]], list[Tensor]]


class CompiledModel(GemmaModel):
    """See `GemmaModel`; `programs` are compiled passes by name, see programs.py."""

    def __init__(
        self, config: GemmaConfig, weights: GemmaWeights, programs: Mapping[str, Program]
    ) -> None:
        super().__init__(config, weights)
        self._programs = dict(programs)
        self._kinds = kinds_of(self)

    def new_cache(self, batch_size: int, capacity: int, spare: int | None = None) -> Cache:
        """See `GemmaModel.new_cache`."""
        if spare is None:
            spare = default_spare(self.config)
        return FlatCache(self.config, batch_size, capacity, spare, self.device, self.dtype)

    def canvas_statistics(
        self,
        canvas_ids: Tensor,
        soft_embedding: Tensor | None,
        temperature: Tensor,
        bound: Tensor,
        fixed_ids: Tensor | None,
        cache: Cache,
        rows: Sequence[int],
    ) -> CanvasStatistics | None:
        """A denoising pass as `denoise` takes it and `canvas_statistics_torch` on its logits; None
        if there is no program for that, or if what it gives are no numbers.
        """
        parts, tokens = _parts(len(rows)), canvas_ids.shape[1]
        names = [statistics_program(size) for size in parts]
        is_whole = tokens == self.config.canvas_length
        if not (isinstance(cache, FlatCache) and is_whole and {*names} <= self._programs.keys()):
            return None
        metadata = cache.metadata(rows, [tokens] * len(rows), tokens, causal=False)
        if soft_embedding is None:
            soft_embedding = torch.zeros(*canvas_ids.shape, self.config.hidden_size)
        if fixed_ids is None:
            fixed_ids = torch.full_like(canvas_ids, FREE)
        given = canvas_ids, soft_embedding, temperature, bound, fixed_ids
        places = self._canvas_places(metadata, parts, cache)
        try:
            pieces = [tensor.split_with_sizes(parts) for tensor in given]
            found = [
                self._programs[name]([*own, *place])
                for name, *own, place in zip(names, *pieces, places, strict=True)
            ]
        except LibraryError as error:
            self._disable_programs(error)
            return None
        whole = found[0] if len(parts) == 1 else map(torch.cat, zip(*found, strict=True))
        statistics = CanvasStatistics(*whole)
        # An uncompiled pass says in which layer activations overflow.
        return statistics if is_finite(statistics.mean_entropy) else None

    def renoise(
        self, p: Tensor, accepted: Tensor, seeds: Sequence[int], canvas: int, step: int
    ) -> tuple[Tensor, Tensor] | None:
        """The next canvas [1, C] and its expected embedding [1, C, H], see `RenoisePass`.

        ``p`` is [1, C, V] and ``accepted`` [1, C]. None if there is no program for that.
        More canvases gain nothing, as uncompiled sampling leaves out what cannot win.
        """
        if RENOISING not in self._programs:
            return None
        numbers = torch.tensor([*seeds, canvas, step], dtype=torch.int32)
        given = p, accepted, numbers[None, :2], numbers[2:3], numbers[3:]
        try:
            next_ids, soft_embedding = self._programs[RENOISING](given)
        except LibraryError as error:
            self._disable_programs(error)
            return None
        return next_ids, soft_embedding

    def _run(
        self, x: Tensor, metadata: AttentionMetadata, cache: Cache, is_whole: bool = True
    ) -> Tensor:
        """As uncompiled, but rows one after another as one: nothing is spent on padding."""
        groups = _split(metadata, _groups(metadata.lengths))
        names = [causal_program(sum(group.lengths), is_whole) for group in groups]
        if (
            not (metadata.causal and isinstance(cache, FlatCache))
            or not ({*names} <= self._programs.keys() and max(metadata.lengths) <= MAX_TOKENS)
            or (is_whole and len(metadata.rows) > 1)
        ):
            return super()._run(x, metadata, cache, is_whole)
        cache.mark_written(metadata)
        rows = iter(x)
        outputs = []
        try:
            for name, group in zip(names, groups, strict=True):
                packed = torch.cat([next(rows)[:length] for length in group.lengths])[None]
                outputs += self._programs[name]([packed, *self._packed_place(group, cache)])
        except LibraryError as error:
            self._disable_programs(error)
            return super()._run(x, metadata, cache, is_whole)
        if is_whole and not is_finite(outputs[0]):
            return super()._run(x, metadata, cache, is_whole)  # which raises, with the layer
        return outputs[0]

    def _canvas_places(
        self, metadata: AttentionMetadata, parts: Sequence[int], cache: FlatCache
    ) -> list[list[Tensor]]:
        """What programs for so many rows each are given besides their own input."""
        latest = cache.prepared
        if latest is None or latest[0] != metadata:
            places = [self._canvas_place(part, cache) for part in _split(metadata, parts)]
            latest = cache.prepared = metadata, places
        return latest[1]

    def _canvas_place(self, metadata: AttentionMetadata, cache: FlatCache) -> list[Tensor]:
        slots, masks = zip(*(cache.earlier(metadata, kind) for kind in self._kinds), strict=True)
        place = AttentionInputs(self._rotations_of(metadata), slots, masks)
        return [*place.tensors, *cache.flat_keys, *cache.flat_values]

    def _packed_place(self, metadata: AttentionMetadata, cache: FlatCache) -> list[Tensor]:
        packed = [cache.packed(metadata, kind) for kind in self._kinds]
        place = AttentionInputs(
            self._rotations_of(metadata),
            slots=tuple(one.slots for one in packed),
            masks=tuple(one.mask for one in packed),
            own_masks=tuple(one.own_mask for one in packed),
            written=tuple(one.written for one in packed),
        )
        return [*place.tensors, *cache.flat_keys, *cache.flat_values]

    def _rotations_of(self, metadata: AttentionMetadata) -> tuple[Tensor, ...]:
        """Those of canvases by row, those of a causal pass one row's after another's."""
        rotations: list[Tensor] = []
        end = max(metadata.starts) + metadata.tokens
        for rope in sorted(self._ropes):
            table = self._rotation_table(rope, end)
            for part in (table.cosine, table.signed_sine):
                if len(metadata.rows) == 1:
                    rotations.append(part[None, metadata.starts[0] : end])
                    continue
                pairs = zip(metadata.starts, metadata.lengths, strict=True)
                rows = [part[start : start + length] for start, length in pairs]
                rotations.append(torch.cat(rows)[None] if metadata.causal else torch.stack(rows))
        return tuple(rotations)

    def _disable_programs(self, error: LibraryError) -> None:
        """Run uncompiled from now on."""
        self._programs = {}
        _log.warning("compiled passes are not used any more: %s", error)


def load_small(path: str | Path) -> GemmaModel:
    """The model in a folder, on the CPU, with its compiled passes if there are any.

    Passes that cannot be used are left out, and that is logged. Raises CheckpointError.
    """
    model = load_model(path)
    if not artefacts_folder().is_dir():
        return model
    try:
        files = read_artefact(artefact_of(Path(path)))
        programs = {name: Library(file, available_cores()) for name, file in files.items()}
    except (ArtefactError, LibraryError) as error:
        _log.warning("compiled passes are not used, `hybrid compile` makes new ones: %s", error)
        return model
    return CompiledModel(model.config, model.weights, programs) if programs else model


def statistics_program(rows: int) -> str:
    """The program for canvases of so many rows."""
    return "judge_row" if rows == 1 else "judge_rows"


def causal_program(tokens: int, is_whole: bool) -> str:
    """The program for so many tokens, empty if there is none for their kind of pass."""
    if not is_whole:
        return "read" if tokens > 1 else ""
    return "encode" if tokens > 1 else "write"


def _parts(rows: int) -> list[int]:
    """So many rows in parts as large as a program takes, and as equal as they can be."""
    count = -(-rows // MAX_ROWS)
    return [rows // count + (part < rows % count) for part in range(count)]


def _groups(lengths: Sequence[int]) -> list[int]:
    """Sizes of groups of following rows that are read as one; a long row is its own."""
    sizes, tokens = [0], 0
    for length in lengths:
        if tokens and tokens + length > _PACKED_TOKENS:
            sizes, tokens = [*sizes, 0], 0
        sizes[-1] += 1
        tokens += length
    return sizes


def _split(metadata: AttentionMetadata, parts: Sequence[int]) -> list[AttentionMetadata]:
    pieces, at = [], 0
    for size in parts:
        here = slice(at, at + size)
        rows, starts, lengths = metadata.rows[here], metadata.starts[here], metadata.lengths[here]
        pieces.append(AttentionMetadata(rows, starts, lengths, metadata.tokens, metadata.causal))
        at += size
    return pieces
