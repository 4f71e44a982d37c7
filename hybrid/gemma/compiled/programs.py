"""The passes that are compiled ahead of time, as functions of tensors alone.

A denoising pass goes on to what is made of its logits, and `RenoisePass` to the next canvases.

Nothing of a request is built in: which slots of the cache a pass sees, what is hidden and how
positions turn are inputs. Unlike in `GemmaModel` a canvas is never written to the cache, its keys
are joined to the earlier ones; a causal pass writes its own at its end, in place.

Rows and lengths are open, but a program for one row cannot be one for several: what is one is
built in. A program for several rows is made for at most `MAX_ROWS`, a whole batch of the embedded
drafter: 10.0 ms, and 11.0 as two halves.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from hybrid.gemma.config import LayerKind
from hybrid.gemma.model.gemma import GemmaModel
from hybrid.gemma.model.layer import Layer, Rotation
from hybrid.kernels.canvas_statistics import canvas_statistics_torch, renoise_torch
from hybrid.kernels.norms import add_rms_norm_torch, rms_norm_torch

KINDS: tuple[LayerKind, ...] = ("sliding", "full")
MAX_ROWS = 8


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """Where a pass of R rows and T tokens stands.

    By kind of layer: ``slots`` int64 [R, S] of the earlier tokens in the flattened cache, and their
    additive ``masks`` [R, 1 or T, S]. A causal pass has R = 1, whatever rows its tokens are of, and
    besides ``own_masks`` [T, T], of its own tokens, and ``written`` int64 [T], their slots.
    ``turns`` are cosine and signed sine [R, T, 1, D] of every rope in order.
    """

    rotations: tuple[Tensor, ...]
    slots: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    own_masks: tuple[Tensor, ...] = ()
    written: tuple[Tensor, ...] = ()

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, in the order of a program's inputs."""
        return [*self.rotations, *self.slots, *self.masks, *self.own_masks, *self.written]


class StatisticsPass(nn.Module):
    """A step's pass, and what is made of its logits: a `CanvasStatistics` as a tuple.

    ``canvas_ids`` [R, C], ``soft_embedding`` [R, C, H], the others as `canvas_statistics_torch`
    takes them.
    """

    def __init__(self, model: GemmaModel) -> None:
        super().__init__()
        self._model, self._stack = model, Stack(model, causal=False)

    def forward(
        self,
        canvas_ids: Tensor,
        soft_embedding: Tensor,
        temperature: Tensor,
        bound: Tensor,
        fixed_ids: Tensor,
        rotations: list[Tensor],
        slots: list[Tensor],
        masks: list[Tensor],
        keys: list[Tensor],
        values: list[Tensor],
    ) -> tuple[Tensor, ...]:
        model = self._model
        x = model.condition(canvas_ids, soft_embedding)
        place = AttentionInputs(tuple(rotations), tuple(slots), tuple(masks))
        x = self._stack.run(x, place, keys, values, is_whole=True)
        logits = model.logits(rms_norm_torch(x, model.weights.norm, model.config.rms_norm_eps))
        return tuple(canvas_statistics_torch(logits, temperature, bound, fixed_ids))


class RenoisePass(nn.Module):
    """The next canvases as `renoise_torch` makes them, and the embeddings that ``p`` expects."""

    def __init__(self, model: GemmaModel) -> None:
        super().__init__()
        self._model = model

    def forward(
        self, p: Tensor, accepted: Tensor, seeds: Tensor, canvas: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor]:
        next_ids = renoise_torch(p, accepted, seeds, canvas, step)
        return next_ids, self._model.soft_embed(p)


class CausalPass(nn.Module):
    """``x`` [1, T, H] through all layers, or up to the last layer's keys and values."""

    def __init__(self, model: GemmaModel, is_whole: bool) -> None:
        super().__init__()
        self._stack, self._is_whole = Stack(model, causal=True), is_whole

    def forward(
        self,
        x: Tensor,
        rotations: list[Tensor],
        slots: list[Tensor],
        masks: list[Tensor],
        own_masks: list[Tensor],
        written: list[Tensor],
        keys: list[Tensor],
        values: list[Tensor],
    ) -> Tensor:
        place = AttentionInputs(
            tuple(rotations), tuple(slots), tuple(masks), tuple(own_masks), tuple(written)
        )
        return self._stack.run(x, place, keys, values, self._is_whole)


class Stack:
    """The layers of a model, on what is given of the cache."""

    def __init__(self, model: GemmaModel, causal: bool) -> None:
        self._layers, self._causal = model.layers, causal
        self._ropes = sorted({layer.rope for layer in model.layers})
        self._kinds = kinds_of(model)
        self._eps = model.config.rms_norm_eps

    def run(
        self,
        x: Tensor,
        place: AttentionInputs,
        keys: list[Tensor],
        values: list[Tensor],
        is_whole: bool,
    ) -> Tensor:
        """As `GemmaModel` runs them; ``keys`` and ``values`` are flat, [slots of all rows, ...]."""
        if self._causal:
            pairs = zip(place.masks, place.own_masks, strict=True)
            masks = [torch.cat((mask, own[None]), 2) for mask, own in pairs]
        else:
            masks = [pad(mask, (0, x.shape[1])) for mask in place.masks]
        for layer, layer_keys, layer_values in zip(self._layers, keys, values, strict=True):
            rope, kind = self._ropes.index(layer.rope), self._kinds.index(layer.geometry.kind)
            query, key, value = layer.heads(x, Rotation(*place.rotations[2 * rope : 2 * rope + 2]))
            if is_whole or layer is not self._layers[-1]:
                earlier = place.slots[kind]
                attended = attend(
                    query,
                    torch.cat((layer_keys[earlier], key), 1),
                    torch.cat((layer_values[earlier], value), 1),
                    masks[kind],
                )
                x = self._finish_layer(layer, x, attended)
            if self._causal:
                layer_keys[place.written[kind]] = key[0]
                layer_values[place.written[kind]] = value[0]
        return x

    def _finish_layer(self, layer: Layer, x: Tensor, attended: Tensor) -> Tensor:
        weights = layer.weights
        output = linear(attended, weights.attention.output).view(x.shape)
        x = add_rms_norm_torch(x, output, weights.attention.post_norm, self._eps)
        scalar = weights.encode_scalar if self._causal else weights.denoise_scalar
        return layer.feed_forward(x, scalar, is_few=True)


def kinds_of(model: GemmaModel) -> list[LayerKind]:
    """The kinds of layers that a model has, in the order of a place's tensors."""
    return [kind for kind in KINDS if any(layer.kind == kind for layer in model.config.layers)]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention output [R * T, heads * D] of ``query`` [R, T, heads, D].

    ``key`` and ``value`` [R, S, key heads, D]; ``mask`` additive, [R, 1 or T, S].
    """
    rows, tokens, num_heads, head_dim = query.shape
    seen, num_key_heads = key.shape[1:3]
    group = num_heads // num_key_heads
    grouped = query.view(rows, tokens, num_key_heads, group, head_dim).transpose(1, 2)
    queries = grouped.reshape(rows, num_key_heads, tokens * group, head_dim)
    scores = queries @ key.permute(0, 2, 3, 1)
    if mask.shape[1] == 1:
        scores = scores + mask[:, None]
    else:
        by_token = scores.view(rows, num_key_heads, tokens, group, seen)
        scores = (by_token + mask[:, None, :, None]).view(scores.shape)
    output = scores.softmax(-1) @ value.transpose(1, 2)
    output = output.view(rows, num_key_heads, tokens, group * head_dim)
    return output.transpose(1, 2).reshape(rows * tokens, num_heads * head_dim)
