"""The operations of a denoising step at the real model's size, as the compile gate calls them.

Tensors are on the `meta` device: they have shapes and no memory. What a case launches with the
settings that ship is what is compiled. Sizes are those of DiffusionGemma 26B-A4B.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from hybrid.kernels.accept import accept
from hybrid.kernels.attention import cached_attention
from hybrid.kernels.experts import experts
from hybrid.kernels.head import VOCABULARY_TILE, head, head_sample, head_scores
from hybrid.kernels.linear import linear, linear_gated, linear_heads
from hybrid.kernels.native import NativeMatrix
from hybrid.kernels.noise import draw_keys, random_tokens
from hybrid.kernels.norms import attention_residual, feed_forward_residual, rms_norm
from hybrid.kernels.nvfp4 import TILE_COLUMNS, TILE_ROWS, PackedMatrix
from hybrid.kernels.quantize import dequantize, quantize, quantize_rows
from hybrid.kernels.route import route
from hybrid.kernels.selfcond import condition
from hybrid.kernels.soft_embed import soft_embed

HIDDEN, CANVAS, CONTEXT, WINDOW = 2816, 256, 4096, 1024
VOCABULARY, EXPERTS, TOP_K, EXPERT_SIZE = 262144, 128, 8, 704
DENSE = 2112
META = torch.device("meta")
# What a product must come out as: warp-group instructions on Hopper, those of the tensor core's own
# memory on the B200, warp instructions on the RTX 5090.
Matrix = Mapping[int, tuple[str, ...]]
WIDE: Matrix = {90: ("HGMMA",), 100: ("UTC",), 120: ("HMMA",)}
# Products of four bits by four bits with their scales.
BLOCK_SCALED: Matrix = {100: ("UTCOMMA",), 120: ("OMMA",)}
# What a product of bfloat16 may be where tiles are too small for wide instructions.
NARROW: Matrix = {90: ("HGMMA", "HMMA"), 100: ("UTC", "HMMA"), 120: ("HMMA",)}

Weight = Tensor | PackedMatrix | NativeMatrix


@dataclass(frozen=True, slots=True)
class Case:
    """One call of an operation.

    `products` are the kernels that must multiply matrices, with instructions whose names begin as
    `matrix` says by architecture, and there is no case for others; `weights` is how many weights
    they read in a turn of the loop. Loads in inner loops must not wait unless they `may_wait`.
    """

    name: str
    call: Callable[[], object]
    products: tuple[str, ...] = ()
    matrix: Matrix = field(default_factory=lambda: WIDE)
    weights: int = 0
    may_wait: bool = False


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor without memory."""
    return torch.empty(shape, device=META, dtype=dtype)


def cases() -> list[Case]:
    """Every case, in the order of a step."""
    layers = [
        *_attention_cases(),
        *_row_cases(),
        *_expert_cases(),
        *_linear_cases(),
        *_native_cases(),
    ]
    return [*layers, *_vocabulary_cases(), *_quantizing_cases()]


def _attention_cases() -> list[Case]:
    canvas = [
        Case(
            f"attention, {kind}, {rows} x {tokens} {'causal' if causal else 'canvas'}",
            partial(_attend, rows, tokens, kind == "sliding", causal),
            ("attend",),
            WIDE if tokens > 16 else NARROW,
        )
        for kind in ("sliding", "full")
        for rows, tokens, causal in (
            (1, CANVAS, False),
            (4, CANVAS, False),
            (8, CANVAS, False),
            (1, 512, True),
        )
    ]
    reading = [
        Case(
            f"attention, {kind}, {rows} x {tokens}",
            partial(_attend, rows, tokens, kind == "sliding", True),
            ("attend",),
            WIDE if tokens > 16 else NARROW,
        )
        for kind in ("sliding", "full")
        for rows in (1, 2, 4, 8)
        for tokens in (1, 16, 2, 4, 8, 64, CANVAS)
    ]
    return canvas + reading


def _attend(rows: int, tokens: int, is_sliding: bool, causal: bool) -> object:
    heads, head_dim, window = (8, 256, WINDOW) if is_sliding else (2, 512, 0)
    slots = WINDOW - 1 + 2 * CANVAS if is_sliding else CONTEXT + CANVAS
    cache = partial(meta, rows + 1, slots + 1, heads, head_dim)
    numbers = partial(meta, rows, dtype=torch.int32)
    return cached_attention(
        meta(rows, tokens, 16, head_dim),
        cache(),
        cache(),
        numbers(),
        numbers(),
        numbers(),
        window,
        causal,
        CONTEXT + CANVAS,
    )


def _row_cases() -> list[Case]:
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


def _packed(matrices: int, rows: int, columns: int) -> PackedMatrix:
    tiles = (matrices, -(-rows // TILE_ROWS), -(-columns // TILE_COLUMNS), TILE_ROWS)
    words = meta(*tiles, TILE_COLUMNS // 8, dtype=torch.int32)
    scales = meta(*tiles, TILE_COLUMNS // 16, dtype=torch.float8_e4m3fn)
    factors = meta(matrices, rows, dtype=torch.float32)
    return PackedMatrix(words, scales, factors, rows, columns)


def _native(matrices: int, rows: int, columns: int) -> NativeMatrix:
    tiles = (matrices, -(-rows // TILE_ROWS), -(-columns // TILE_COLUMNS), TILE_ROWS)
    codes = meta(*tiles, TILE_COLUMNS // 2, dtype=torch.uint8)
    scales = meta(*tiles, TILE_COLUMNS // 16, dtype=torch.float8_e4m3fn)
    factors = meta(matrices, rows, dtype=torch.float32)
    return NativeMatrix(codes, scales, factors, rows, columns)


def _native_cases() -> list[Case]:
    """Four bits by four bits: the sizes of the other products with experts and dense branch."""
    cases = []
    for tokens in (1, 32, CANVAS, 4 * CANVAS, 8 * CANVAS):
        calls: dict[str, tuple[Callable[[], object], str]] = {
            "experts": (partial(_experts, _native, tokens), "grouped_native"),
        }
        products = _products(tokens, partial(_native, 1))
        calls |= {name: (call, "linear_native") for name, call in products.items()}
        cases += [
            Case(f"native, {name}, {tokens}", call, (kernel,), BLOCK_SCALED)
            for name, (call, kernel) in calls.items()
        ]
    return cases


def _expert_cases() -> list[Case]:
    """From a decoded token to eight canvases; plain weights only for a canvas."""
    expert = partial(_experts, _packed)
    sizes = [
        Case(
            f"experts, {tokens}",
            partial(expert, tokens),
            ("grouped_product",),
            weights=TILE_ROWS * TILE_COLUMNS,
        )
        for tokens in (1, CANVAS, 4 * CANVAS, 8 * CANVAS, 16, 32, 64, 128)
    ]
    plain = partial(_experts, meta, CANVAS)
    return [*sizes, Case("experts, bfloat16", plain, ("grouped_product",))]


def _experts(make: Callable[..., Weight], tokens: int) -> object:
    return experts(
        meta(tokens, HIDDEN),
        meta(tokens, TOP_K, dtype=torch.int32),
        meta(tokens, TOP_K, dtype=torch.float32),
        make(EXPERTS, 2 * EXPERT_SIZE, HIDDEN),
        make(EXPERTS, HIDDEN, EXPERT_SIZE),
    )


def _linear_cases() -> list[Case]:
    """Every product of a layer but the experts', from a decoded token to four canvases."""
    cases = []
    for tokens in (1, CANVAS, 4 * CANVAS, 32):
        matrix = WIDE if tokens > 16 else NARROW
        for name, call in _products(tokens, meta).items():
            cases.append(Case(f"linear, {name}, {tokens}", call, ("linear_rows",), matrix))
        heads = {k: partial(_heads, tokens, k == "sliding") for k in ("sliding", "full")}
        for name, heading in heads.items():
            plain, packed = partial(heading, meta), partial(heading, partial(_packed, 1))
            cases += [
                Case(f"heads, {name}, {tokens}", plain, ("linear_head",), matrix),
                Case(f"heads, packed, {name}, {tokens}", packed, ("linear_head",), NARROW),
            ]
        cases += [
            Case(
                f"linear, packed, {name}, {tokens}",
                call,
                ("linear_rows",),
                weights=TILE_ROWS * TILE_COLUMNS,
            )
            for name, call in _products(tokens, partial(_packed, 1)).items()
        ]
    return cases


def _products(tokens: int, make: Callable[[int, int], Weight]) -> dict[str, Callable[[], object]]:
    """The products after attention and of the dense branch."""
    sizes = {"output": 16 * 256, "output, full": 16 * 512, "down": DENSE}
    products: dict[str, Callable[[], object]] = {
        name: partial(linear, meta(tokens, columns), make(HIDDEN, columns))
        for name, columns in sizes.items()
    }
    return {
        **products,
        "gated": partial(linear_gated, meta(tokens, HIDDEN), make(2 * DENSE, HIDDEN)),
    }


def _heads(
    tokens: int, is_sliding: bool, make: Callable[[int, int], Tensor | PackedMatrix]
) -> object:
    num_keys, head_dim = (8, 256) if is_sliding else (2, 512)
    rows = (16 + num_keys * (2 if is_sliding else 1)) * head_dim
    turn = partial(meta, tokens, head_dim // 2, dtype=torch.float32)
    cache = partial(meta, CONTEXT, num_keys, head_dim)
    norm, slots = meta(head_dim), meta(tokens, dtype=torch.int64)
    x, weight = meta(tokens, HIDDEN), make(rows, HIDDEN)
    return linear_heads(x, weight, norm, norm, turn(), turn(), cache(), cache(), slots, 16, 1e-6)


def _quantizing_cases() -> list[Case]:
    weights, x = meta(EXPERTS, 2 * EXPERT_SIZE, HIDDEN), meta(CANVAS, HIDDEN)
    packed = meta(EXPERTS, 2 * EXPERT_SIZE, HIDDEN // 2, dtype=torch.uint8)
    scales = meta(EXPERTS, 2 * EXPERT_SIZE, HIDDEN // 16, dtype=torch.float8_e4m3fn)
    scale_2 = meta(EXPERTS, dtype=torch.float32)
    return [
        Case("quantize", partial(quantize, weights)),
        Case("dequantize", partial(dequantize, packed, scales, scale_2)),
        Case("quantize rows", partial(quantize_rows, x)),
    ]


def _vocabulary_cases() -> list[Case]:
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
    for barred in (4, 1, 2):
        drawing = partial(_sample, CANVAS, barred)
        found.append(Case(f"head and sample, {barred} barred", drawing, ("sample_tile",)))
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


def _sample(tokens: int, barred: int | None) -> object:
    return head_sample(
        meta(tokens, HIDDEN),
        meta(VOCABULARY, HIDDEN),
        30.0,
        meta(tokens, dtype=torch.float32),
        meta(tokens, dtype=torch.int32),
        None if barred is None else meta(tokens, barred, dtype=torch.int32),
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
