"""A model runner (see `hybrid.drafters.model_runner`) on a GPU: one captured graph a step.

The host asks for step n + 1 before it looks at step n, so the device never waits for the host. What
must be known at once is waited for: a canvas with a guide, and one whose time is up.
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from hybrid.drafters.model_runner import random_canvases, read_canvases, read_prompts
from hybrid.drafters.noise import Noise
from hybrid.drafters.sequence import DraftSequence
from hybrid.engine.canvases import Canvases, Start
from hybrid.engine.model import EngineModel
from hybrid.engine.snapshots import Snapshot, Snapshots
from hybrid.errors import BackendError
from hybrid.kernels.accept import FREE
from hybrid.protocols import Votes


class GraphRunner:
    """Keeps canvases in device memory; the host sees copies of them, one step late."""

    def __init__(
        self, model: EngineModel, noise: Noise, max_batch_size: int, max_total_tokens: int
    ) -> None:
        self.max_batch_size = min(max_batch_size, model.max_batch_size(max_total_tokens))
        self.max_total_tokens = max_total_tokens
        self._model, self._noise = model, noise
        self._cache = model.new_cache(self.max_batch_size, max_total_tokens)
        self._buffers = model.kv_buffers(self._cache)
        self._graphs = self._buffers.graphs
        new_canvases = partial(Canvases, model, self.max_batch_size)
        self._canvases = self._graphs.get_or_create("canvases", new_canvases)
        self._snapshots = Snapshots(self._canvases)
        self._steps_asked: dict[int, int] = {}  # by row
        self._row_indices: dict[tuple[int, ...], Tensor] = {}
        self._pending: tuple[Snapshot, list[DraftSequence]] | None = None

    def prefill(self, sequences: Sequence[DraftSequence]) -> None:
        """See `ModelRunner.prefill`."""
        read_prompts(self._model, self._cache, sequences)
        self._start_canvases(sequences)

    def denoise(self, sequences: Sequence[DraftSequence]) -> list[DraftSequence]:
        """See `ModelRunner.denoise`; one that may take no more learns what its last step did."""
        before, self._pending = self._pending, None
        continuing = [s for s in sequences if not self._has_asked_for_all(s)]
        if continuing:
            self._ask_for_step(continuing)
            self._pending = self._snapshots.take(), continuing
        updated = _load_results(*before) if before else []
        return updated + self.synchronize([s for s in continuing if s.job.guide is not None])

    def synchronize(self, sequences: Sequence[DraftSequence]) -> list[DraftSequence]:
        """See `ModelRunner.synchronize`."""
        late = [s for s in sequences if s.step < self._steps_asked[s.row]]
        if late and self._pending:
            return _load_results(self._pending[0], late)
        return []

    def apply_votes(self, sequence: DraftSequence, votes: Votes) -> None:
        """See `ModelRunner.apply_votes`."""
        random_ids = random_canvases(self._noise, self._model.config, [sequence])[0]
        sequence.apply_votes(votes, random_ids)
        canvas_ids = sequence.canvas_ids.tolist()
        self._canvases.set_input(sequence.row, canvas_ids, _fixed_token_ids(sequence))
        self._canvases.banned_tokens.set(sequence.row, sequence.banned_tokens)
        if sequence.stable_steps < 0:
            self._canvases.reset_convergence(sequence.row)

    def commit(self, sequences: Sequence[DraftSequence]) -> None:
        """See `ModelRunner.commit`."""
        read_canvases(self._model, self._cache, sequences)
        self._start_canvases([s for s in sequences if s.finish_reason is None])

    def _start_canvases(self, sequences: Sequence[DraftSequence]) -> None:
        if not sequences:
            return
        canvases = random_canvases(self._noise, self._model.config, sequences)
        for sequence, random_ids in zip(sequences, canvases, strict=True):
            sequence.start_canvas(random_ids)
            self._steps_asked[sequence.row] = 0
            self._canvases.begin(sequence.row, self._start(sequence))

    def _start(self, sequence: DraftSequence) -> Start:
        params = sequence.job.params
        return Start(
            seed=sequence.job.seed,
            canvas=sequence.canvas,
            context=self._cache.count(sequence.row),
            max_denoising_steps=params.max_denoising_steps,
            entropy_bound=params.entropy_bound,
            t_min=params.t_min,
            t_max=params.t_max,
            stability_threshold=params.stability_threshold,
            confidence_threshold=params.confidence_threshold,
            ids=sequence.canvas_ids.tolist(),
            fixed_token_ids=_fixed_token_ids(sequence),
        )

    def _has_asked_for_all(self, sequence: DraftSequence) -> bool:
        return self._steps_asked[sequence.row] >= sequence.job.params.max_denoising_steps

    def _ask_for_step(self, sequences: Sequence[DraftSequence]) -> None:
        """Enqueue one step; rows are padded to a power of two, which is what is captured."""
        rows = sorted(sequence.row for sequence in sequences)
        for row in rows:
            self._steps_asked[row] += 1
        idle, size = self._canvases.idle_row, 1 << (len(rows) - 1).bit_length()
        width = self._canvases.banned_tokens.width
        self._graphs.run(
            ("denoise", size, width),
            partial(self._canvases.step, self._buffers, banned_width=width),
            (self._indices((*rows, *[idle] * (size - len(rows)))),),
            (self._indices([idle] * size),),
        )

    def _indices(self, rows: Iterable[int]) -> Tensor:
        """Rows on the device. Kept: a copy from the host would wait for the step before."""
        key = tuple(rows)
        if key not in self._row_indices:
            self._row_indices[key] = torch.tensor(key, device=self._model.device)
        return self._row_indices[key]


def _load_results(snapshot: Snapshot, sequences: Sequence[DraftSequence]) -> list[DraftSequence]:
    """Take over what the snapshot knows of the sequences; those for which it is news."""
    snapshot.wait()
    updated = []
    for sequence in sequences:
        row = sequence.row
        canvas, step, converged, mean_entropy = snapshot.outcome[row].tolist()
        if canvas == sequence.canvas and math.isnan(mean_entropy):
            found = f"canvas {sequence.canvas + 1}, step {int(step)}: logits are not finite"
            sequence.finish(BackendError("denoise", f"{found}: the model's activations overflow"))
        elif canvas == sequence.canvas and step > sequence.step:
            sequence.load_result(
                step=int(step),
                canvas_ids=snapshot.ids[row].long(),
                best_ids=snapshot.best_ids[row].long(),
                entropy=snapshot.entropy[row].clone(),
                accepted=snapshot.accepted[row].clone(),
                converged=bool(converged),
                mean_entropy=mean_entropy,
            )
            updated.append(sequence)
    return updated


def _fixed_token_ids(sequence: DraftSequence) -> list[int]:
    given = sequence.fixed_token_ids
    fixed: list[int] = [FREE] * len(sequence.canvas_ids) if given is None else given.tolist()
    return fixed
