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
from hybrid.gemma.cache import LEAST_SPARE, Cache, Reading
from hybrid.gemma.config import GemmaConfig
from hybrid.gemma.flat_cache import FlatCache
from hybrid.gemma.library import Library, LibraryError
from hybrid.gemma.model import GemmaModel, load_model
from hybrid.gemma.traced import MOST_ROWS, Place, kinds_of
from hybrid.gemma.weights import GemmaWeights

MOST_TOKENS = 256  # of a causal pass, which lays out its scores
_log = logging.getLogger(__name__)
Program = Callable[[Sequence[Tensor]], list[Tensor]]


class CompiledModel(GemmaModel):
    """See `GemmaModel`; `programs` are compiled passes by name, as `traced` says."""

    def __init__(
        self, config: GemmaConfig, weights: GemmaWeights, programs: Mapping[str, Program]
    ) -> None:
        super().__init__(config, weights)
        self._programs = dict(programs)
        self._kinds = kinds_of(self)

    def new_cache(self, batch_size: int, capacity: int, spare: int | None = None) -> Cache:
        """See `GemmaModel.new_cache`."""
        if spare is None:
            spare = max(self.config.canvas_length, LEAST_SPARE)
        return FlatCache(self.config, batch_size, capacity, spare, self.device, self.dtype)

    def _denoise(
        self, canvas_ids: Tensor, soft_embedding: Tensor | None, reading: Reading, cache: Cache
    ) -> Tensor:
        parts = _parts(len(reading.rows))
        names = {program_name(causal=False, rows=size) for size in parts}
        is_whole = reading.tokens == self.config.canvas_length
        if not (isinstance(cache, FlatCache) and is_whole and names <= set(self._programs)):
            return super()._denoise(canvas_ids, soft_embedding, reading, cache)
        if soft_embedding is None:
            soft_embedding = torch.zeros(*canvas_ids.shape, self.config.hidden_size)
        canvas_ids, soft_embedding = canvas_ids.long().contiguous(), soft_embedding.contiguous()
        latest = cache.prepared
        if latest is None or latest[0] != reading:
            latest = reading, [self._prepare(part, cache) for part in _split(reading, parts)]
            cache.prepared = latest
        logits: list[Tensor] = []
        at = 0
        try:
            for size, place in zip(parts, latest[1], strict=True):
                program = self._programs[program_name(causal=False, rows=size)]
                logits += program(
                    [canvas_ids[at : at + size], soft_embedding[at : at + size], *place]
                )
                at += size
        except LibraryError as error:
            self._give_up(error)
            return super()._denoise(canvas_ids, soft_embedding, reading, cache)
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def _run(self, x: Tensor, reading: Reading, cache: Cache, is_whole: bool = True) -> Tensor:
        """As uncompiled, but row by row: nothing is spent on padding."""
        names = [program_name(True, 1, length, is_whole) for length in reading.lengths]
        if (
            not (reading.causal and isinstance(cache, FlatCache))
            or not (set(names) <= set(self._programs) and max(reading.lengths) <= MOST_TOKENS)
            or (is_whole and len(names) > 1)
        ):
            return super()._run(x, reading, cache, is_whole)
        cache.touch(reading)
        outputs = []
        try:
            for row, (name, part) in enumerate(zip(names, _rows(reading), strict=True)):
                mine = x[row : row + 1, : part.tokens]
                outputs += self._programs[name]([mine, *self._prepare(part, cache)])
        except LibraryError as error:
            self._give_up(error)
            return super()._run(x, reading, cache, is_whole)
        return outputs[0]

    def _prepare(self, reading: Reading, cache: FlatCache) -> list[Tensor]:
        """What a program is given besides its own input."""
        earlier = [cache.earlier(reading, kind) for kind in self._kinds]
        place = Place(
            turns=self._turns(reading),
            slots=tuple(slots for slots, _ in earlier),
            masks=tuple(mask for _, mask in earlier),
            written=tuple(cache.own(reading, kind)[0] for kind in self._kinds)
            if reading.causal
            else (),
        )
        return [*place.tensors, *cache.flat_keys, *cache.flat_values]

    def _turns(self, reading: Reading) -> tuple[Tensor, ...]:
        turns: list[Tensor] = []
        end = max(reading.starts) + reading.tokens
        for rope in sorted(self._ropes):
            table = self._rotation_table(rope, end)
            if len(reading.rows) == 1:
                here = slice(reading.starts[0], end)
                turns += table.cosine[None, here], table.signed_sine[None, here]
            else:
                starts = torch.tensor(reading.starts)[:, None]
                positions = starts + torch.arange(reading.tokens)
                turns += table.cosine[positions], table.signed_sine[positions]
        return tuple(turns)

    def _give_up(self, error: LibraryError) -> None:
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


def program_name(causal: bool, rows: int, tokens: int = 0, is_whole: bool = True) -> str:
    """The program for a pass, empty if there is none for its kind."""
    if not causal:
        return "denoise_row" if rows == 1 else "denoise_rows"
    if rows > 1:
        return ""
    if not is_whole:
        return "read" if tokens > 1 else ""
    return "encode" if tokens > 1 else "write"


def _parts(rows: int) -> list[int]:
    """So many rows in parts as large as a program takes, and as equal as they can be."""
    count = -(-rows // MOST_ROWS)
    return [rows // count + (part < rows % count) for part in range(count)]


def _rows(reading: Reading) -> list[Reading]:
    rows = zip(reading.rows, reading.starts, reading.lengths, strict=True)
    return [Reading((row,), (start,), (length,), length, True) for row, start, length in rows]


def _split(reading: Reading, parts: Sequence[int]) -> list[Reading]:
    readings, at = [], 0
    for size in parts:
        here = slice(at, at + size)
        rows, starts, lengths = reading.rows[here], reading.starts[here], reading.lengths[here]
        readings.append(Reading(rows, starts, lengths, reading.tokens, reading.causal))
        at += size
    return readings
