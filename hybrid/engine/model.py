"""A Gemma 4 text model on packed weights: `GemmaModel` of hybrid/gemma/model, for a GPU.

The layers are a dozen fused operations each. Norms are computed where their input is made: the
residual steps hand every branch its normalised input, so no activation is read twice.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import embedding

from hybrid.engine.attention_metadata import (
    AttentionMetadataBuilder,
    DeviceAttentionMetadata,
    device_vectors,
)
from hybrid.engine.device_errors import device_errors
from hybrid.engine.kv_cache import KVCacheBuffers
from hybrid.engine.kv_cache_pool import KVCachePool
from hybrid.engine.operations import KERNELS, Operations
from hybrid.engine.weights import EngineWeights, FeedForwardWeights, LayerWeights
from hybrid.gemma.config import GemmaConfig
from hybrid.gemma.model.cache import AttentionMetadata, Cache, to_ints
from hybrid.kernels.attention import cached_attention
from hybrid.kernels.experts import experts
from hybrid.kernels.head import head, head_scores
from hybrid.kernels.linear import linear, linear_gated, linear_heads

_CHUNK = 512  # prompt tokens of all rows in one pass: bounds the working memory
_MAX_DECODE_TOKENS = 16  # passes of up to so many tokens are captured as graphs, and a canvas's
# Tokens a row that kernels see: every other number would be compiled for, seconds at a time.
PASS_SIZES = (1, 2, 4, 8, _MAX_DECODE_TOKENS, 64, 256, _CHUNK)


class EngineModel:
    """Weights, geometry and the memory that passes work in. Call it under `inference_mode`.

    On a CPU every operation is its reference, in the weights' dtype.
    """

    def __init__(
        self, config: GemmaConfig, weights: EngineWeights, operations: Operations = KERNELS
    ) -> None:
        self.config, self.weights, self.operations = config, weights, operations
        self.device, self.dtype = weights.embedding.device, weights.embedding.dtype
        self._builder = AttentionMetadataBuilder(config, self.device)
        self._pool = KVCachePool(config, self.device, self.dtype)
        # The published models round the scale to the weights' dtype.
        scale = torch.tensor(math.sqrt(config.hidden_size), dtype=self.dtype)
        self.embedding_scale: float = scale.item()

    @property
    def skipped_tensors(self) -> tuple[str, ...]:
        """Tensors of the checkpoint that were left out, such as the vision tower's."""
        return self.weights.skipped

    def new_cache(self, batch_size: int, capacity: int, spare: int | None = None) -> Cache:
        """An empty cache for `batch_size` rows of up to `capacity` tokens.

        `spare` is how many of a row's last tokens `rollback` can always forget. The memory behind
        it is that of an earlier cache that nobody uses any more, where there is one. Raises
        CapabilityError if the device has no room for it.
        """
        return self._pool.new_cache(batch_size, capacity, spare)

    def max_batch_size(self, max_total_tokens: int) -> int:
        """How many rows of so many tokens are best denoised together in the memory there is.

        The first answer for a size stands, as its rows are what takes the memory afterwards.
        """
        return self._pool.max_batch_size(max_total_tokens)

    def kv_buffers(self, cache: Cache) -> KVCacheBuffers:
        """The memory behind a cache."""
        return self._pool.buffers(cache)

    def clear_row(self, cache: Cache, row: int) -> None:
        """Forget all that the row has read."""
        cache.clear(row)

    def encode(
        self,
        token_ids: Tensor,
        lengths: Sequence[int] | Tensor,
        cache: Cache,
        rows: Sequence[int] | Tensor,
    ) -> Tensor:
        """Read tokens causally; returns hidden states [R, T, H] after the final norm.

        ``token_ids`` [R, T] is right-padded; the first ``lengths[r]`` tokens are appended to cache
        row ``rows[r]``, and hidden states beyond them mean nothing.
        """
        numbers, remaining = to_ints(rows), to_ints(lengths)
        token_ids = self.config.embedded_ids(token_ids)
        outputs: list[Tensor] = []
        tokens, done = token_ids.shape[1], 0
        limit = self.max_pass_tokens(len(numbers))
        while done < tokens or not outputs:
            now = [min(limit, length) for length in remaining]
            metadata = cache.metadata(numbers, now, min(tokens - done, limit), causal=True)
            if (fits := cache.max_pass_tokens(metadata)) < metadata.tokens:
                now = [min(fits, length) for length in now]
                metadata = cache.metadata(numbers, now, fits, causal=True)
            ids = token_ids[:, done : done + metadata.tokens]
            outputs.append(self._read(ids, metadata, cache))
            remaining = [left - read for left, read in zip(remaining, now, strict=True)]
            done += metadata.tokens
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def max_pass_tokens(self, rows: int) -> int:
        """How many tokens a row one causal pass of so many rows reads."""
        return max(_CHUNK // rows, _MAX_DECODE_TOKENS, self.config.canvas_length)

    def read(
        self,
        token_ids: Tensor,
        lengths: Sequence[int] | Tensor,
        cache: Cache,
        rows: Sequence[int] | Tensor,
    ) -> None:
        """As `encode`, for those who want what is read to be seen and nothing else."""
        self.encode(token_ids, lengths, cache, rows)

    def denoise(
        self,
        canvas_ids: Tensor,
        soft_embedding: Tensor | None,
        cache: Cache,
        rows: Sequence[int] | Tensor,
    ) -> Tensor:
        """Logits [R, C, V] of a canvas, each position's own: float32, softly capped.

        ``canvas_ids`` [R, C]; ``soft_embedding`` [R, C, H], zeros for rows at a canvas's first
        step, None if all are. The cache is left as it was.
        """
        numbers, tokens = to_ints(rows), canvas_ids.shape[1]
        if self.weights.self_conditioning is None:
            raise ValueError("this model has no self-conditioning: it cannot denoise")
        if tokens > self.config.canvas_length:
            raise ValueError(f"a canvas has {self.config.canvas_length} tokens, not {tokens}")
        metadata = cache.metadata(numbers, [tokens] * len(numbers), tokens, causal=False)
        cache.mark_written(metadata)
        vectors = device_vectors(metadata, self.device)
        if soft_embedding is None:
            shape = (*canvas_ids.shape, self.config.hidden_size)
            soft_embedding = torch.zeros(shape, device=self.device, dtype=self.dtype)
        hidden = self.denoised(canvas_ids, soft_embedding, self.kv_buffers(cache), *vectors)
        return self.logits(hidden)

    def denoised(
        self,
        canvas_ids: Tensor,
        soft_embedding: Tensor,
        buffers: KVCacheBuffers,
        rows: Tensor,
        starts: Tensor,
        lengths: Tensor,
    ) -> Tensor:
        """Hidden states [R, C, H] of canvases after the final norm; all that is read is on the
        device. ``rows``, ``starts`` and ``lengths`` as in `DeviceAttentionMetadata`.
        """
        weights, eps = self.weights.self_conditioning, self.config.rms_norm_eps
        assert weights is not None, "the model has no self-conditioning"
        soft = self.operations.rms_norm(soft_embedding.flatten(0, 1), weights.pre_norm, eps)
        signal = linear(linear_gated(soft, weights.gate_up), weights.down)
        ids = canvas_ids.to(torch.int32).flatten()
        x = self.operations.condition(
            ids, signal, self.weights.embedding, self.embedding_scale, eps
        )
        tokens = canvas_ids.shape[1]
        metadata = self._builder.build(
            rows, starts, lengths, tokens, buffers.max_context, buffers.slots, causal=False
        )
        return self._run(x, metadata, buffers).view(soft_embedding.shape)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., H], float32, softly capped."""
        softcap = self.config.final_logit_softcapping
        flat = head(hidden.reshape(-1, hidden.shape[-1]), self.weights.embedding, softcap)
        return flat.view(*hidden.shape[:-1], -1)

    def score(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        """Log-probabilities [T], float32, of ``token_ids`` [T] under hidden states [T, H]."""
        return self.score_and_choose(hidden, token_ids)[0]

    def score_and_choose(self, hidden: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """As `score`, and the most likely tokens, int32 [T]; logits are never whole in memory."""
        softcap = self.config.final_logit_softcapping
        return head_scores(hidden, self.weights.embedding, softcap, token_ids.to(torch.int32))

    def soft_embed(self, probabilities: Tensor) -> Tensor:
        """The expected embedding [R, C, H] of ``probabilities`` [R, C, V]."""
        return (probabilities.to(self.dtype) @ self.weights.embedding) * self.embedding_scale

    def _read(self, token_ids: Tensor, metadata: AttentionMetadata, cache: Cache) -> Tensor:
        buffers = self.kv_buffers(cache)
        tokens = next((size for size in PASS_SIZES if size >= metadata.tokens), metadata.tokens)
        ids = torch.zeros((len(metadata.rows), tokens), device=self.device, dtype=torch.int64)
        ids[:, : token_ids.shape[1]].copy_(token_ids)
        inputs = (ids, *device_vectors(metadata, self.device))
        cache.mark_written(metadata)
        work = partial(self._read_tokens, buffers)
        hidden: Tensor
        if tokens <= _MAX_DECODE_TOKENS or tokens == self.config.canvas_length:
            idle = (torch.zeros_like(ids), *buffers.idle_vectors(*ids.shape))
            key = ("read", *ids.shape)
            hidden = buffers.graphs.run(key, work, inputs, idle)[:, : metadata.tokens].clone()
        else:
            with device_errors(self.device):
                hidden = work(*inputs)[:, : metadata.tokens]
        cache.advance(metadata)
        return hidden

    def _read_tokens(
        self,
        buffers: KVCacheBuffers,
        token_ids: Tensor,
        rows: Tensor,
        starts: Tensor,
        lengths: Tensor,
    ) -> Tensor:
        """Hidden states [R, T, H] of tokens read causally into the cache."""
        tokens = token_ids.shape[1]
        metadata = self._builder.build(
            rows, starts, lengths, tokens, buffers.max_context, buffers.slots, causal=True
        )
        x = embedding(token_ids.flatten(), self.weights.embedding) * self.embedding_scale
        return self._run(x, metadata, buffers).view(*token_ids.shape, -1)

    def _run(self, x: Tensor, metadata: DeviceAttentionMetadata, buffers: KVCacheBuffers) -> Tensor:
        """``x`` [R * T, H] through all layers and the final norm."""
        layers, eps = self.weights.layers, self.config.rms_norm_eps
        after = [layer.attention.input_norm for layer in layers[1:]] + [self.weights.norm]
        normed = self.operations.rms_norm(x, layers[0].attention.input_norm, eps)
        for index, (layer, next_norm) in enumerate(zip(layers, after, strict=True)):
            attended = self._attend(normed, index, metadata, buffers)
            scalar = layer.encode_scalar if metadata.causal else layer.denoise_scalar
            x, normed = self._feed_forward(x, attended, layer, scalar, next_norm)
        return normed

    def _attend(
        self, normed: Tensor, index: int, metadata: DeviceAttentionMetadata, buffers: KVCacheBuffers
    ) -> Tensor:
        """What the layer's attention adds, before its norm; writes keys and values."""
        config, geometry = self.config, self.config.layers[index]
        weights = self.weights.layers[index].attention
        keys, values = buffers.keys[index], buffers.values[index]
        query = linear_heads(
            normed,
            weights.query_key_value,
            weights.query_norm,
            weights.key_norm,
            *metadata.rotations[geometry.rope],
            keys.flatten(0, 1),
            values.flatten(0, 1),
            metadata.slots[geometry.kind],
            config.num_attention_heads,
            config.rms_norm_eps,
        )
        attended = cached_attention(
            query.view(len(metadata.rows), metadata.tokens, -1, geometry.head_dim),
            keys,
            values,
            metadata.rows,
            metadata.starts,
            metadata.lengths,
            config.sliding_window if geometry.kind == "sliding" else 0,
            metadata.causal,
            metadata.max_context,
        )
        return linear(attended.flatten(0, 1), weights.output)

    def _feed_forward(
        self, x: Tensor, attended: Tensor, layer: LayerWeights, scalar: float, next_norm: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The residual stream after the layer, and the next layer's normalised input."""
        weights, eps = layer.feed_forward, self.config.rms_norm_eps
        branch = weights.experts
        x, dense_input, expert_input = self.operations.attention_residual(
            x,
            attended,
            layer.attention.post_norm,
            weights.input_norm,
            branch.input_norm if branch else None,
            eps,
        )
        dense = linear(linear_gated(dense_input, weights.gate_up), weights.down)
        return self.operations.feed_forward_residual(
            x,
            dense,
            self._mix_experts(x, expert_input, weights),
            branch.dense_norm if branch else None,
            branch.expert_norm if branch else None,
            weights.post_norm,
            scalar,
            next_norm,
            eps,
        )

    def _mix_experts(
        self, x: Tensor, normed: Tensor | None, weights: FeedForwardWeights
    ) -> Tensor | None:
        """The chosen experts' weighted outputs [T, k, H]; the router sees the raw residual."""
        branch = weights.experts
        if branch is None or normed is None:
            return None
        chosen, shares = self.operations.route(
            x,
            branch.router_scale,
            branch.router,
            branch.expert_scale,
            self.config.top_k_experts,
            self.config.rms_norm_eps,
        )
        return experts(normed, chosen, shares, branch.gate_up, branch.down)
