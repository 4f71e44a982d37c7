"""The head and what follows it: scores, samples, soft embedding, noise and acceptance."""

from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hybrid.kernels.accept import accept, accept_torch
from hybrid.kernels.gate.emulate.cases.case import (
    EXACT,
    Case,
    Tolerance,
    Trial,
    compare,
    normal,
    whole,
)
from hybrid.kernels.head import (
    head,
    head_sample,
    head_sample_torch,
    head_scores,
    head_scores_torch,
    head_torch,
)
from hybrid.kernels.noise import draw_keys, draw_keys_torch, random_tokens, random_tokens_torch
from hybrid.kernels.soft_embed import soft_embed, soft_embed_torch

_VOCABULARY, _HIDDEN, _SOFTCAP = 300, 192, 30.0
_LOGITS = Tolerance(relative=1e-5, absolute=2e-4)
_SCORES = Tolerance(relative=2e-5, absolute=2e-4)
_ROUNDED = Tolerance(relative=2**-8 + 2e-5, absolute=2e-4)
_SOFT = Tolerance(relative=2**-7, of_largest=2**-9, rms=3e-3)


def vocabulary_cases() -> list[Case]:
    """Tokens and vocabularies that tiles divide, and such that they do not."""
    cases = []
    for tokens in (5, 16, 40, 64, 128, 130):
        cases += [
            Case(f"head, {tokens}", partial(_head, tokens)),
            Case(f"head scores, {tokens}", partial(_scores, tokens)),
        ]
    for tokens in (5, 70, 128, 130):
        cases.append(Case(f"head and sample, {tokens}", partial(_sample, tokens, None)))
        for skip in (0.0, 5e-4):
            trial = partial(_soft_embed, tokens, skip)
            cases.append(Case(f"soft embedding, {tokens}, skipping below {skip}", trial))
    for banned in (1, 2, 4):
        cases.append(Case(f"head and sample, {banned} banned", partial(_sample, 64, banned)))
    return [
        *cases,
        Case("accept", _accept),
        *(Case(f"draw keys, purpose {p}", partial(_draw_keys, p)) for p in (0, 1)),
        Case("random tokens", _random_tokens),
    ]


def _inputs(tokens: int) -> list[Any]:
    vocabulary = 384 if tokens % 16 == 0 else _VOCABULARY
    return [normal(tokens, _HIDDEN), normal(vocabulary, _HIDDEN, scale=0.2), _SOFTCAP]


def _head(tokens: int) -> Trial:
    return compare(head, head_torch, _inputs(tokens), _LOGITS)


def _scores(tokens: int) -> Trial:
    arguments = [*_inputs(tokens), whole(_VOCABULARY, tokens)]
    return compare(head_scores, head_scores_torch, arguments, _SCORES, EXACT)


def _sample(tokens: int, banned: int | None) -> Trial:
    temperature, keys = torch.rand(tokens) + 0.5, whole(2**31 - 1, tokens)
    bans = None if banned is None else whole(_VOCABULARY, tokens, banned)
    arguments = [*_inputs(tokens), temperature, keys, bans]
    names = ("logits", "log_sum_exp", "largest", "entropy", "best", "sample")
    tolerance = (_ROUNDED, _SCORES, _SCORES, _SCORES, EXACT, EXACT)

    def call(operation: Callable[..., Any], x: Tensor) -> list[Tensor]:
        sampled = operation(x, *arguments[1:])
        return [getattr(sampled, name) for name in names]

    x = arguments[0]
    return Trial(
        lambda: call(head_sample, x), lambda: call(head_sample_torch, x.double()), tolerance
    )


def _soft_embed(tokens: int, skip_below: float) -> Trial:
    logits = normal(tokens, 640, scale=3.0)
    fixed = torch.where(torch.rand(tokens) < 0.2, whole(640, tokens), -1).int()
    largest = logits.float().view(tokens, -1, 128).amax(-1)
    arguments = [
        logits, logits.float().logsumexp(-1), normal(640, 512), fixed, 53.0, largest, skip_below,
    ]  # fmt: skip
    return compare(soft_embed, soft_embed_torch, arguments, _SOFT)


def _accept() -> Trial:
    rows, places = 2, 256
    ids = [whole(262144, rows, places) for _ in range(4)]
    fixed = torch.where(torch.rand(rows, places) < 0.1, whole(262144, rows, places), -1).int()
    arguments = [torch.rand(rows, places), *ids, fixed, torch.tensor([3.0, 40.0])]
    exact = accept_torch(*arguments)
    tolerances = tuple(
        Tolerance(relative=1e-6) if value.is_floating_point() else EXACT for value in astuple(exact)
    )
    return Trial(lambda: astuple(accept(*arguments)), lambda: astuple(exact), tolerances)


def _draw_keys(purpose: int) -> Trial:
    arguments = [whole(2**31 - 1, 3, 2), whole(99, 3), whole(99, 3), purpose, 256]
    return compare(draw_keys, draw_keys_torch, arguments, EXACT, widened=())


def _random_tokens() -> Trial:
    arguments = [2 * whole(2**30, 2, 256) + 1, 262144]
    return compare(random_tokens, random_tokens_torch, arguments, EXACT, widened=())
