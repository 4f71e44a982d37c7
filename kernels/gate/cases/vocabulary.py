"""Operations over the vocabulary: the head with its sample, soft embeddings, noise."""

from functools import partial

import torch

from hybrid.kernels.accept import accept
from hybrid.kernels.gate.cases.case import CANVAS, HIDDEN, NARROW, VOCABULARY, WIDE, Case, meta
from hybrid.kernels.head import VOCABULARY_TILE, head, head_sample, head_scores
from hybrid.kernels.noise import draw_keys, random_tokens
from hybrid.kernels.soft_embed import soft_embed


def vocabulary_cases() -> list[Case]:
    """A canvas and more; the head also for the few tokens that are scored."""
    whole = partial(meta, dtype=torch.int32)
    single = partial(meta, dtype=torch.float32)
    numbers, canvas = whole(1), whole(1, CANVAS)
    chances, bound = single(1, CANVAS), single(1)
    accepting = partial(accept, chances, canvas, canvas, canvas, canvas, canvas, bound)
    found = [
        Case("draw keys", partial(draw_keys, whole(1, 2), numbers, numbers, 1, CANVAS)),
        Case("draw keys of tokens", partial(draw_keys, whole(1, 2), numbers, numbers, 0, CANVAS)),
        Case("random tokens", partial(random_tokens, canvas, VOCABULARY)),
        Case("accept", accepting),
    ]
    for rows in (1, 4, 2):
        tokens = rows * CANVAS
        drawing = partial(_sample, tokens, None)
        found.append(Case(f"head and sample, {rows} x {CANVAS}", drawing, ("sample_tile",)))
        expecting = partial(_expect, tokens, 0.0)
        found.append(Case(f"soft embedding, {rows} x {CANVAS}", expecting, ("expect",)))
    for tokens in (16, 64):
        few = partial(_expect, tokens, 0.0)
        matrix = WIDE if tokens > 16 else NARROW
        found.append(Case(f"soft embedding, {tokens}", few, ("expect",), matrix))
    for banned in (4, 1, 16):
        drawing = partial(_sample, CANVAS, banned)
        found.append(Case(f"head and sample, {banned} banned", drawing, ("sample_tile",)))
    # It has to look at a tile's largest logits before it knows whether to read the tile.
    skipping = partial(_expect, CANVAS, 1e-7)
    found.append(Case("soft embedding, skipping", skipping, ("expect",), may_wait=True))
    for tokens in (1, 16, CANVAS, 40, 64, 100):
        scoring = partial(_score, tokens)
        matrix = WIDE if tokens > 16 else NARROW
        found.append(Case(f"head scores, {tokens}", scoring, ("score_tile",), matrix))
        plain = partial(head, meta(tokens, HIDDEN), meta(VOCABULARY, HIDDEN), 30.0)
        found.append(Case(f"head, {tokens}", plain, ("plain_tile",), matrix))
    return found


def _sample(tokens: int, banned: int | None) -> object:
    return head_sample(
        meta(tokens, HIDDEN),
        meta(VOCABULARY, HIDDEN),
        30.0,
        meta(tokens, dtype=torch.float32),
        meta(tokens, dtype=torch.int32),
        None if banned is None else meta(tokens, banned, dtype=torch.int32),
    )


def _score(tokens: int) -> object:
    ids = meta(tokens, dtype=torch.int32)
    return head_scores(meta(tokens, HIDDEN), meta(VOCABULARY, HIDDEN), 30.0, ids)


def _expect(tokens: int, skip_below: float) -> object:
    return soft_embed(
        meta(tokens, VOCABULARY),
        meta(tokens, dtype=torch.float32),
        meta(VOCABULARY, HIDDEN),
        meta(tokens, dtype=torch.int32),
        53.0,
        meta(tokens, VOCABULARY // VOCABULARY_TILE, dtype=torch.float32),
        skip_below,
    )
