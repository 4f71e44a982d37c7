"""The cases of the proof: operations at the tile sizes of real models, beside float64 references.

Rows of 1 to 128, 704 or 2,816 columns, two experts: small enough for a minute with compilation.
Tolerances are those of the README's table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hybrid.kernels import attention, linear, nvfp4, soft_embed
from hybrid.kernels.accept import accept, accept_torch
from hybrid.kernels.experts import experts, experts_torch
from hybrid.kernels.head import head, head_sample, head_sample_torch, head_scores, head_torch
from hybrid.kernels.launch import architecture
from hybrid.kernels.native import NATIVE_ARCHITECTURES, native_matrix
from hybrid.kernels.noise import draw_keys, draw_keys_torch, random_tokens, random_tokens_torch
from hybrid.kernels.norms import (
    attention_residual,
    attention_residual_torch,
    feed_forward_residual,
    feed_forward_residual_torch,
    rms_norm,
)
from hybrid.kernels.route import route, route_torch
from hybrid.kernels.selfcond import condition, condition_torch

HIDDEN, INNER, ROWS, VOCABULARY, EPS = 2816, 704, 256, 1024, 1e-6
ROUNDING = 2.0**-8  # one rounding to bfloat16
Outputs = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class ProofCase:
    """One call of an operation, and of its reference, on the same inputs.

    `form` is that of the weights: plain, packed or native; "" where there are none. `largest`
    bounds each error as a share of the number and the RMS of all, `rms` the RMS error as a share of
    the RMS; both are 0 where results must be equal. `ids` gives token or expert numbers, which must
    be below `id_limit` whatever the inputs are. The reference computes in float64.
    """

    operation: str
    form: str
    size: str
    call: Callable[..., Outputs]
    reference: Callable[..., Outputs]
    arguments: Callable[[], tuple[Any, ...]]
    largest: float
    rms: float
    ids: Callable[..., Outputs] | None = None
    id_limit: int = 0

    @property
    def name(self) -> str:
        """Unique among the cases."""
        return ", ".join(part for part in (self.operation, self.form, self.size) if part)


def proof_cases(device: torch.device) -> list[ProofCase]:
    """Every case that the device must pass; inputs are made when a case is called."""
    make = _Inputs(device)
    forms = ["plain", "packed"]
    if device.type != "cpu" and architecture(device) in NATIVE_ARCHITECTURES:
        forms.append("native")
    return [
        *_norm_cases(make),
        *(case for form in forms for case in _linear_cases(make, form)),
        *_head_dimension_cases(make),
        *(_expert_case(make, form, tokens) for form in forms for tokens in (1, 128)),
        *_attention_cases(make),
        *_vocabulary_cases(make),
        *_canvas_cases(make),
    ]


class _Inputs:
    """Random numbers, the same at every call, on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def numbers(self, *shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
        """bfloat16 normal numbers."""
        generator = torch.Generator().manual_seed(seed + sum(shape))
        return (torch.randn(shape, generator=generator) * scale).bfloat16().to(self.device)

    def single(self, *shape: int, seed: int = 0) -> Tensor:
        """float32 from 0.3 to 0.9."""
        generator = torch.Generator().manual_seed(seed + sum(shape))
        return (torch.rand(shape, generator=generator) * 0.6 + 0.3).to(self.device)

    def whole(self, limit: int, *shape: int, seed: int = 0) -> Tensor:
        """int32 below the limit."""
        generator = torch.Generator().manual_seed(seed + sum(shape))
        return torch.randint(limit, shape, generator=generator).int().to(self.device)

    def matrix(self, form: str, count: int, rows: int, columns: int) -> Any:
        """A weight [rows, columns], or `count` of them where that is above 1."""
        weight = self.numbers(count, rows, columns, scale=columns**-0.5)
        if form == "plain":
            return weight if count > 1 else weight[0]
        codes, scales, factor = nvfp4.quantize_torch(weight.cpu())
        factors = factor[:, None] * torch.linspace(0.5, 1.5, rows)
        parts = (part.to(self.device) for part in (codes, scales, factors))
        packed = nvfp4.pack_matrix(*parts)
        return packed if form == "packed" else native_matrix(packed)


def _case(
    operation: str,
    form: str,
    size: str,
    call: Callable[..., Any],
    reference: Callable[..., Any],
    arguments: Callable[[], tuple[Any, ...]],
    largest: float = ROUNDING,
    rms: float = ROUNDING,
    ids: Callable[..., Outputs] | None = None,
    id_limit: int = 0,
) -> ProofCase:
    """A case whose reference gets the same arguments, in float64 where they are bfloat16."""
    return ProofCase(
        operation,
        form,
        size,
        lambda *given: _tuple(call(*given)),
        lambda *given: _tuple(reference(*map(_wide, given))),
        arguments,
        largest,
        rms,
        ids,
        id_limit,
    )


def _tuple(value: Any) -> Outputs:
    parts = value if isinstance(value, tuple) else (value,)
    return tuple(part for part in parts if part is not None)


def _wide(value: Any) -> Any:
    is_wide = isinstance(value, Tensor) and value.dtype == torch.bfloat16
    return value.double() if is_wide else value


def _norm_cases(make: _Inputs) -> list[ProofCase]:
    def rows(count: int) -> list[Tensor]:
        return [make.numbers(64, HIDDEN, seed=seed) for seed in range(count)]

    def norms(count: int) -> list[Tensor]:
        return [1 + make.numbers(HIDDEN, seed=seed, scale=0.1) for seed in range(count)]

    mixed = partial(make.numbers, 64, 8, HIDDEN)
    return [
        _case("rms_norm", "", "64", rms_norm, _rms_norm_reference,
              lambda: (*rows(1), *norms(1), EPS)),
        _case("attention_residual", "", "64", attention_residual, attention_residual_torch,
              lambda: (*rows(2), *norms(3), EPS), 2 * ROUNDING),
        _case("feed_forward_residual", "", "64", feed_forward_residual, feed_forward_residual_torch,
              lambda: (*rows(2), mixed(), *norms(3), 0.9, *norms(1), EPS),
              2 * ROUNDING),
        _case("route", "", "64", route, route_torch,
              lambda: (*rows(1), *norms(1), make.numbers(128, HIDDEN), make.single(128), 8, EPS),
              2e-4, 2e-4, lambda *given: route(*given)[:1], 128),
    ]  # fmt: skip


def _rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """In float64, which `rms_norm_torch` does not compute in."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def _linear_cases(make: _Inputs, form: str) -> list[ProofCase]:
    cases = []
    for tokens in (1, 32, 64, 128):
        operands = partial(_operands, make, form, tokens)
        cases.append(
            _case("linear", form, str(tokens), linear.linear, linear.linear_torch, operands,
                  0.005, 0.003)
        )  # fmt: skip
    gated = partial(_operands, make, form, 64)
    call, reference = linear.linear_gated, linear.linear_gated_torch
    return [*cases, _case("linear_gated", form, "64", call, reference, gated, 0.005, 0.003)]


def _operands(make: _Inputs, form: str, tokens: int) -> tuple[Tensor, Any]:
    return make.numbers(tokens, HIDDEN), make.matrix(form, 1, ROWS, HIDDEN)


def _head_dimension_cases(make: _Inputs) -> list[ProofCase]:
    return [
        _case("linear_heads", form, f"64 x {dimension}", partial(_heads, linear.linear_heads),
              partial(_heads, linear.linear_heads_torch),
              partial(_head_operands, make, form, dimension), 0.005, 0.004)
        for form in ("plain", "packed")
        for dimension in (256, 512)
    ]  # fmt: skip


def _head_operands(make: _Inputs, form: str, dimension: int) -> tuple[Any, ...]:
    angles = 6 * make.single(64, dimension // 2)
    norms = (1 + make.numbers(dimension, seed=seed, scale=0.1) for seed in range(2))
    return (
        make.numbers(64, HIDDEN),
        make.matrix(form, 1, 4 * dimension, HIDDEN),
        *norms,
        angles.cos(),
        angles.sin(),
    )


def _heads(operation: Callable[..., Tensor], x: Tensor, weight: Any, *rest: Tensor) -> Outputs:
    """Two query heads, one key head and one value head; and what is in the caches afterwards."""
    dimension = len(rest[0])
    keys, values = (x.new_zeros(80, 1, dimension) for _ in range(2))
    slots = torch.arange(64, device=x.device).flip(0) + 7
    query = operation(x, weight, *rest, keys, values, slots, 2, EPS)
    return query, keys, values


def _expert_case(make: _Inputs, form: str, tokens: int) -> ProofCase:
    def operands() -> tuple[Any, ...]:
        chosen = torch.arange(2, device=make.device, dtype=torch.int32).repeat(tokens, 1)
        return (
            make.numbers(tokens, HIDDEN),
            chosen,
            make.single(tokens, 2),
            make.matrix(form, 2, 2 * INNER, HIDDEN),
            make.matrix(form, 2, HIDDEN, INNER),
        )

    return _case("experts", form, str(tokens), experts, experts_torch, operands, 0.02, 0.006)


def _attention_cases(make: _Inputs) -> list[ProofCase]:
    call, reference = attention.cached_attention, attention.cached_attention_torch
    return [
        _case("cached_attention", "", f"{tokens} x {dimension}", call, reference,
              partial(_attention_operands, make, tokens, dimension, window), 2**-7, 3e-3)
        for tokens, dimension, window in ((1, 256, 128), (64, 256, 128), (1, 512, 0), (64, 512, 0))
    ]  # fmt: skip


def _attention_operands(make: _Inputs, tokens: int, dimension: int, window: int) -> tuple[Any, ...]:
    heads, slots, start = 2, 512, 300
    keys, values = (make.numbers(2, slots + 1, heads, dimension, seed=seed) for seed in range(2))
    query = make.numbers(1, tokens, 8 * heads, dimension, scale=dimension**-0.5)
    row, starts, lengths = (
        torch.tensor([number], dtype=torch.int32, device=make.device)
        for number in (1, start, tokens)
    )
    return query, keys, values, row, starts, lengths, window, tokens == 1, start + tokens


def _vocabulary_cases(make: _Inputs) -> list[ProofCase]:
    hidden, embedding = partial(make.numbers, 64, HIDDEN), partial(_embedding, make)
    ids = partial(make.whole, VOCABULARY, 64)
    keys = partial(make.whole, 2**31 - 1, 64)
    return [
        _case("head", "", "64", head, head_torch, lambda: (hidden(), embedding(), 30.0),
              2e-4, 1e-4),
        _case("head_scores", "", "64", _scores, _scores_reference,
              lambda: (hidden(), embedding(), 30.0, ids()), 2e-4, 1e-4,
              lambda *given: head_scores(*given)[1:], VOCABULARY),
        _case("head_sample", "", "64", _statistics(head_sample), _statistics(head_sample_torch),
              lambda: (hidden(), embedding(), 30.0, make.single(64), keys(), None), 2e-4, 1e-4,
              _sampled_ids, VOCABULARY),
        _case("soft_embed", "", "64", soft_embed.soft_embed, soft_embed.soft_embed_torch,
              partial(_soft_operands, make), 2**-7, 3e-3),
        _case("condition", "", "64", condition, condition_torch,
              lambda: (ids(), hidden(), embedding(), 53.0, EPS)),
    ]  # fmt: skip


def _embedding(make: _Inputs) -> Tensor:
    return make.numbers(VOCABULARY, HIDDEN, seed=5, scale=HIDDEN**-0.5)


def _scores(*arguments: Any) -> Outputs:
    return (head_scores(*arguments)[0],)


def _scores_reference(hidden: Tensor, embedding: Tensor, softcap: float, ids: Tensor) -> Outputs:
    logits = head_torch(hidden, embedding, softcap)
    return (logits.log_softmax(-1).gather(1, ids.long()[:, None])[:, 0],)


def _statistics(sample: Callable[..., Any]) -> Callable[..., Outputs]:
    def statistics(*arguments: Any) -> Outputs:
        found = sample(*arguments)
        return found.largest, found.log_sum_exp, found.entropy, found.tile_largest

    return statistics


def _sampled_ids(*arguments: Any) -> Outputs:
    found = head_sample(*arguments)
    return found.best, found.sample


def _soft_operands(make: _Inputs) -> tuple[Any, ...]:
    logits = make.numbers(64, VOCABULARY, scale=4.0)
    tiles = logits.float().view(64, -1, 128).amax(-1)
    free = torch.full((64,), -1, dtype=torch.int32, device=make.device)
    return logits, logits.float().logsumexp(-1), _embedding(make), free, 53.0, tiles, 0.0


def _canvas_cases(make: _Inputs) -> list[ProofCase]:
    seeds, numbers = partial(make.whole, 2**31 - 1, 2, 2), partial(make.whole, 40, 2)
    tokens = partial(make.whole, VOCABULARY, 2, 256)
    fixed = partial(torch.full, (2, 256), -1, dtype=torch.int32, device=make.device)
    return [
        _case("draw_keys", "", "2 x 256", draw_keys, draw_keys_torch,
              lambda: (seeds(), numbers(), numbers(seed=1), 1, 256), 0.0, 0.0),
        _case("random_tokens", "", "2 x 256", random_tokens, random_tokens_torch,
              lambda: (make.whole(2**31 - 1, 2, 256), VOCABULARY), 0.0, 0.0),
        _case("accept", "", "2 x 256", _accepted(accept), _accepted(accept_torch),
              lambda: (make.single(2, 256), *(tokens(seed=seed) for seed in range(4)), fixed(),
                       make.single(2)), 0.0, 0.0),
    ]  # fmt: skip


def _accepted(operation: Callable[..., Any]) -> Callable[..., Outputs]:
    def accepted(*arguments: Any) -> Outputs:
        found = operation(*arguments)
        return found.next_ids, found.kept, found.best

    return accepted
