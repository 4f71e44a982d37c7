"""A Gemma 4 text model: causal passes that fill a cache, denoising passes that only read it.

Both run the same layers. A denoising pass differs in its input (a canvas with self-conditioning,
normalised once more), in what it sees (everything) and in the layers' scalars.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear

from hybrid.errors import CheckpointError
from hybrid.gemma.checkpoint.mapping import map_tensors
from hybrid.gemma.checkpoint.tensors import FLOATS, Checkpoint
from hybrid.gemma.config import GemmaConfig, Rope
from hybrid.gemma.model.cache import AttentionMetadata, Cache, default_spare, to_ints
from hybrid.gemma.model.layer import MANY_TOKENS, Layer, Rotation
from hybrid.gemma.model.overflow import is_finite, overflow_error
from hybrid.gemma.model.weights import GemmaWeights, read_weights
from hybrid.kernels.arithmetic import constant, gelu_gate_torch
from hybrid.kernels.head import head_torch
from hybrid.kernels.norms import rms_norm_torch
from hybrid.kernels.rope import frequencies_torch, rotation_torch

Rows = Sequence[int] | Tensor


class GemmaModel:
    """Weights and geometry; keeps nothing between calls but tables of positions.

    Call it under `torch.inference_mode`.
    """

    def __init__(self, config: GemmaConfig, weights: GemmaWeights) -> None:
        self.config = config
        self.weights = weights
        self.device, self.dtype = weights.embedding.device, weights.embedding.dtype
        self.layers = [
            Layer(config, layer, layer_weights)
            for layer, layer_weights in zip(config.layers, weights.layers, strict=True)
        ]
        self._ropes = {layer.rope for layer in self.layers}
        self._tables: dict[Rope, Rotation] = {}
        self._latest: tuple[AttentionMetadata, dict[Rope, Rotation]] | None = None
        # The published models round the scale to the weights' dtype.
        scale = torch.tensor(math.sqrt(config.hidden_size), dtype=self.dtype).item()
        self._embedding_scale = constant(scale, self.device)

    @property
    def skipped_tensors(self) -> tuple[str, ...]:
        """Tensors of the checkpoint that were left out, such as the vision tower's."""
        return self.weights.skipped

    def new_cache(self, batch_size: int, capacity: int, spare: int | None = None) -> Cache:
        """An empty cache for `batch_size` rows of up to `capacity` tokens.

        `spare` is how many of a row's last tokens `rollback` can always forget.
        """
        if spare is None:
            spare = default_spare(self.config)
        return Cache(self.config, batch_size, capacity, spare, self.device, self.dtype)

    def clear_row(self, cache: Cache, row: int) -> None:
        """Forget all that the row has read."""
        cache.clear(row)

    def encode(self, token_ids: Tensor, lengths: Rows, cache: Cache, rows: Rows) -> Tensor:
        """Read tokens causally; returns hidden states [R, T, H] after the final norm.

        ``token_ids`` [R, T] is right-padded; the first ``lengths[r]`` tokens are appended to cache
        row ``rows[r]``, and hidden states beyond them mean nothing.
        """
        states = list(self._passes(token_ids, lengths, cache, rows, is_whole=True))
        x = states[0] if len(states) == 1 else torch.cat(states, dim=1)
        return rms_norm_torch(x, self.weights.norm, self.config.rms_norm_eps)

    def read(self, token_ids: Tensor, lengths: Rows, cache: Cache, rows: Rows) -> None:
        """As `encode`, for the cache alone: the last layer stops at its keys and values."""
        for _ in self._passes(token_ids, lengths, cache, rows, is_whole=False):
            pass

    def _passes(
        self, token_ids: Tensor, lengths: Rows, cache: Cache, rows: Rows, is_whole: bool
    ) -> Iterator[Tensor]:
        """What comes of the tokens, as many at a time as the sliding layers' windows allow."""
        numbers, remaining = to_ints(rows), to_ints(lengths)
        token_ids = self.config.embedded_ids(token_ids)
        while True:
            rest = token_ids.shape[1]
            metadata = cache.metadata(numbers, remaining, rest, causal=True)
            step = min(rest, cache.max_pass_tokens(metadata))
            if step < rest:
                now = [min(step, length) for length in remaining]
                metadata = cache.metadata(numbers, now, step, causal=True)
            yield self._run(self._embed(token_ids[:, :step]), metadata, cache, is_whole)
            cache.advance(metadata)
            if step == rest:
                return
            remaining = [max(0, length - step) for length in remaining]
            token_ids = token_ids[:, step:]

    def denoise(
        self, canvas_ids: Tensor, soft_embedding: Tensor | None, cache: Cache, rows: Rows
    ) -> Tensor:
        """Logits [R, C, V] of a canvas, each position's own: float32, softly capped.

        ``canvas_ids`` [R, C]; ``soft_embedding`` [R, C, H] as `soft_embed` gives it, zeros for rows
        at a canvas's first step, None where all are. The cache is left as it was.
        """
        if self.weights.self_conditioning is None:
            raise ValueError("this model has no self-conditioning: it cannot denoise")
        numbers, tokens = to_ints(rows), canvas_ids.shape[1]
        if tokens > self.config.canvas_length:
            raise ValueError(f"a canvas has {self.config.canvas_length} tokens, not {tokens}")
        metadata = cache.metadata(numbers, [tokens] * len(numbers), tokens, causal=False)
        return self._denoise(canvas_ids, soft_embedding, metadata, cache)

    def _denoise(
        self,
        canvas_ids: Tensor,
        soft_embedding: Tensor | None,
        metadata: AttentionMetadata,
        cache: Cache,
    ) -> Tensor:
        x = self._run(self.condition(canvas_ids, soft_embedding), metadata, cache)
        return self.logits(rms_norm_torch(x, self.weights.norm, self.config.rms_norm_eps))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., H], float32, softly capped."""
        return head_torch(hidden, self.weights.embedding, self.config.final_logit_softcapping)

    def score(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        """Log-probabilities [T] of ``token_ids`` [T] under hidden states [T, H]."""
        log_p = self.logits(hidden).log_softmax(-1)
        return log_p.gather(1, token_ids[:, None])[:, 0]

    def soft_embed(self, probabilities: Tensor) -> Tensor:
        """The expected embedding [R, C, H] of ``probabilities`` [R, C, V]."""
        return (probabilities.to(self.dtype) @ self.weights.embedding).mul_(self._embedding_scale)

    def _embed(self, token_ids: Tensor) -> Tensor:
        return embedding(token_ids, self.weights.embedding).mul_(self._embedding_scale)

    def condition(self, canvas_ids: Tensor, soft_embedding: Tensor | None) -> Tensor:
        """What the layers get of a canvas [R, C] and its ``soft_embedding``, [R, C, H]."""
        weights, eps = self.weights.self_conditioning, self.config.rms_norm_eps
        assert weights is not None
        if soft_embedding is None:
            return rms_norm_torch(self._embed(canvas_ids), None, eps)
        wide = linear(rms_norm_torch(soft_embedding, None, eps), weights.gate_up)
        signal = linear(gelu_gate_torch(*wide.chunk(2, -1)), weights.down)
        return rms_norm_torch(self._embed(canvas_ids) + signal, None, eps)

    def _run(
        self, x: Tensor, metadata: AttentionMetadata, cache: Cache, is_whole: bool = True
    ) -> Tensor:
        """``x`` [R, T, H] through all layers, or up to the last layer's keys and values.

        Raises BackendError, with the layer, for activations that overflow.
        """
        output = x
        for output in self._outputs(x, metadata, cache, is_whole):  # noqa: B007 - the last counts
            pass
        if not is_finite(output):
            raise overflow_error(metadata.causal, self._outputs(x, metadata, cache, is_whole))
        return output

    def _outputs(
        self, x: Tensor, metadata: AttentionMetadata, cache: Cache, is_whole: bool
    ) -> Iterator[Tensor]:
        """The input of the first layer and the output of every one."""
        yield x
        spans = cache.spans(metadata)
        rotations = self._rotations(metadata)
        is_few = len(x) * metadata.tokens < MANY_TOKENS
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            where = spans[layer.kind_and_group], rotations[layer.rope], keys, values
            if layer is self.layers[-1] and not is_whole:
                layer.project(x, *where)
                break
            x = layer.attend(x, *where)
            weights = layer.weights
            scalar = weights.encode_scalar if metadata.causal else weights.denoise_scalar
            x = layer.feed_forward(x, scalar, is_few)
            yield x

    def _rotations(self, metadata: AttentionMetadata) -> dict[Rope, Rotation]:
        """The pass's rotations, kept for the next one: a canvas stays where it is step by step."""
        latest = self._latest
        if latest is None or latest[0] != metadata:
            latest = metadata, {rope: self._rotation(rope, metadata) for rope in self._ropes}
            self._latest = latest
        return latest[1]

    def _rotation(self, rope: Rope, metadata: AttentionMetadata) -> Rotation:
        table = self._rotation_table(rope, max(metadata.starts) + metadata.tokens)
        if metadata.start is not None:
            here = slice(metadata.start, metadata.start + metadata.tokens)
            return Rotation(table.cosine[here], table.signed_sine[here])
        starts = torch.tensor(metadata.starts, device=self.device)[:, None]
        positions = starts + torch.arange(metadata.tokens, device=self.device)
        return Rotation(table.cosine[positions], table.signed_sine[positions])

    def _rotation_table(self, rope: Rope, length: int) -> Rotation:
        """Cosine and signed sine [P, 1, D] of positions up to at least `length`."""
        table = self._tables.get(rope)
        if table is None or len(table.cosine) < length:
            positions = torch.arange(2 ** math.ceil(math.log2(max(length, 256))))
            pair = rotation_torch(positions, frequencies_torch(*rope))
            with torch.inference_mode(False):
                table = Rotation(*(part[:, None].to(self.device, self.dtype) for part in pair))
            self._tables[rope] = table
        return table


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> GemmaModel:
    """The model in the Hugging Face folder `path`, quantized weights decoded to `dtype`.

    Raises CheckpointError, naming file and tensor, for anything that is not a model of the family.
    """
    if dtype not in FLOATS:
        raise CheckpointError(str(path), f"cannot be loaded as {dtype}, only as one of {FLOATS}")
    config = GemmaConfig.from_directory(path)
    map_tensors(path, config)
    checkpoint = Checkpoint(path)
    try:
        weights = read_weights(checkpoint, config, torch.device(device), dtype)
    finally:
        checkpoint.close()
    return GemmaModel(config, weights)
