"""Operations of a token's row: norms with their sums, and the router."""

from functools import partial

import torch

from hybrid.kernels.gate.cases.case import (
    CANVAS,
    EXPERTS,
    HIDDEN,
    NARROW,
    TOP_K,
    VOCABULARY,
    Case,
    meta,
)
from hybrid.kernels.norms import attention_residual, feed_forward_residual, rms_norm
from hybrid.kernels.route import route
from hybrid.kernels.selfcond import condition


def row_cases() -> list[Case]:
    """At one canvas."""
    x, norm, hidden = meta(CANVAS, HIDDEN), meta(HIDDEN), (CANVAS, HIDDEN)
    mixed, router = meta(CANVAS, TOP_K, HIDDEN), meta(EXPERTS, HIDDEN)
    scale = meta(EXPERTS, dtype=torch.float32)
    token_ids, embedding = meta(CANVAS, dtype=torch.int32), meta(VOCABULARY, HIDDEN)
    after = partial(feed_forward_residual, x, x, mixed, norm, norm, norm, 0.5, norm, 1e-6)
    return [
        Case("condition", partial(condition, token_ids, x, embedding, 53.0, 1e-6)),
        Case("norm", partial(rms_norm, meta(*hidden), norm, 1e-6)),
        Case("attention residual", partial(attention_residual, x, x, norm, norm, norm, 1e-6)),
        Case("feed-forward residual", after),
        Case("route", partial(route, x, norm, router, scale, TOP_K, 1e-6), ("choose",), NARROW),
    ]
