"""The denoising loop's steps on a GPU: one captured graph each, and their outcome a step late.

The host asks for step n + 1 before it looks at step n, so the device never waits for the host. What
must be known at once is waited for: a guide's canvas, and the canvas of a row whose time is up.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hybrid.drafters.denoise import Denoiser, HostDenoiser
from hybrid.drafters.noise import Noise
from hybrid.drafters.row import Row
from hybrid.drafters.sampling import sampling_of
from hybrid.engine.canvases import Canvases, Start
from hybrid.engine.model import EngineModel
from hybrid.engine.snapshots import Snapshot, Snapshots
from hybrid.gemma.model.cache import Cache
from hybrid.kernels.accept import FREE


class DeviceDenoiser:
    """A denoiser (see `hybrid.drafters.denoise.Denoiser`) of canvases in device memory."""

    def __init__(self, model: EngineModel, cache: Cache, slots: int) -> None:
        self._model, self._cache = model, cache
        self._rooms = model.rooms(cache)
        self._canvases = self._rooms.graphs.keep("canvases", partial(Canvases, model, slots))
        self._snapshots = Snapshots(self._canvases)
        self._taken: dict[int, int] = {}  # steps asked for, by cache row
        self._vectors: dict[tuple[int, ...], Tensor] = {}
        self._pending: tuple[Snapshot, list[Row]] | None = None

    def begin(self, row: Row) -> None:
        """See `Denoiser.begin`."""
        params, job = row.job.params, row.job
        self._taken[row.cache_row] = 0
        start = Start(
            seed=job.seed,
            canvas=row.canvas,
            context=self._cache.count(row.cache_row),
            max_denoising_steps=params.max_denoising_steps,
            entropy_bound=params.entropy_bound,
            t_min=params.t_min,
            t_max=params.t_max,
            stability_threshold=params.stability_threshold,
            confidence_threshold=params.confidence_threshold,
            ids=row.canvas_ids.tolist(),
            fixed_ids=_fixed_ids(row),
        )
        self._canvases.begin(row.cache_row, start)

    def step(self, rows: Sequence[Row]) -> list[Row]:
        """See `Denoiser.step`; a row that may take no more learns what its last has come to."""
        before, self._pending = self._pending, None
        going_on = [row for row in rows if not self._is_last(row)]
        if going_on:
            self._ask(going_on)
            self._pending = self._snapshots.take(), going_on
        known = _apply(*before) if before else []
        return known + self.settle([row for row in going_on if row.job.guide is not None])

    def settle(self, rows: Sequence[Row]) -> list[Row]:
        """See `Denoiser.settle`."""
        late = [row for row in rows if row.step < self._taken[row.cache_row]]
        if late and self._pending:
            return _apply(self._pending[0], late)
        return []

    def change(self, row: Row) -> None:
        """See `Denoiser.change`."""
        ids = row.canvas_ids.tolist()
        self._canvases.rewrite(row.cache_row, ids, _fixed_ids(row))
        if row.stable_steps < 0:
            self._canvases.unsettle(row.cache_row)

    def _is_last(self, row: Row) -> bool:
        return self._taken[row.cache_row] >= row.job.params.max_denoising_steps

    def _ask(self, rows: Sequence[Row]) -> None:
        """Enqueue one step of the rows."""
        rows = sorted(rows, key=lambda row: row.cache_row)
        for row in rows:
            self._taken[row.cache_row] += 1
        barred = self._barred(rows)
        if barred is not None:
            numbers = self._numbers(row.cache_row for row in rows)
            self._canvases.step(self._rooms, numbers, barred)
            return
        size = 1 << (len(rows) - 1).bit_length()
        idle = [self._canvases.idle_row] * (size - len(rows))
        self._rooms.graphs.run(
            ("denoise", size),
            partial(self._canvases.step, self._rooms),
            (self._numbers((*(row.cache_row for row in rows), *idle)),),
            (self._numbers([self._canvases.idle_row] * size),),
        )

    def _barred(self, rows: Sequence[Row]) -> Tensor | None:
        """int32 [R * C, J] of tokens that may not be written at a place; None if there are none."""
        length = self._model.config.canvas_length
        places: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            for place, token in sorted(row.barred):
                places.setdefault(index * length + place, []).append(token)
        if not places:
            return None
        most = max(map(len, places.values()))
        table = torch.full((len(rows) * length, 1 << (most - 1).bit_length()), FREE)
        for place, tokens in places.items():
            table[place, : len(tokens)] = torch.tensor(tokens)
        return table.to(self._model.device, torch.int32)

    def _numbers(self, numbers: Iterable[int]) -> Tensor:
        """Rows on the device. Kept: a copy from the host would wait for the step before."""
        key = tuple(numbers)
        if key not in self._vectors:
            self._vectors[key] = torch.tensor(key, device=self._model.device)
        return self._vectors[key]


def denoiser_of(model: Any, cache: Any, noise: Noise, slots: int) -> Denoiser:
    """The denoiser of a batch on this kind of model."""
    if isinstance(model, EngineModel):
        return DeviceDenoiser(model, cache, slots)
    return HostDenoiser(sampling_of(model, cache, noise))


def _apply(snapshot: Snapshot, rows: Sequence[Row]) -> list[Row]:
    """Take over what the snapshot knows of the rows; those for which it is news."""
    snapshot.wait()
    news = []
    for row in rows:
        number = row.cache_row
        canvas, step, converged, mean_entropy = snapshot.outcome[number].tolist()
        if canvas == row.canvas and step > row.step:
            row.learn(
                step=int(step),
                canvas_ids=snapshot.ids[number].long(),
                best_ids=snapshot.best_ids[number].long(),
                entropy=snapshot.entropy[number].clone(),
                accepted=snapshot.kept[number].clone(),
                converged=bool(converged),
                mean_entropy=mean_entropy,
            )
            news.append(row)
    return news


def _fixed_ids(row: Row) -> list[int]:
    imposed = row.imposed_ids
    fixed: list[int] = [FREE] * len(row.canvas_ids) if imposed is None else imposed.tolist()
    return fixed
