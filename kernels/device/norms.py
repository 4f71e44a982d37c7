"""RMS norms with the sums around them: one program holds one row, in float32."""

import triton
import triton.language as tl


@triton.jit
def load_row(source, row, offs_h, H: tl.constexpr):
    """A row of a [T, H] tensor in float32, zero beyond H."""
    values = tl.load(source + row.to(tl.int64) * H + offs_h, mask=offs_h < H, other=0.0)
    return values.to(tl.float32)


@triton.jit
def store_row(target, row, offs_h, values, H: tl.constexpr):
    """Round to the target's type, and store."""
    rounded = values.to(target.dtype.element_ty)
    tl.store(target + row.to(tl.int64) * H + offs_h, rounded, mask=offs_h < H)


@triton.jit
def scaled(values, weight, offs_h, H: tl.constexpr, EPS: tl.constexpr):
    """``rms_norm(values, weight)``; values are zero beyond H."""
    inverse = tl.rsqrt(tl.sum(values * values, 0) / H + EPS)
    return values * inverse * tl.load(weight + offs_h, mask=offs_h < H, other=0.0).to(tl.float32)


@triton.jit
def normalise(
    x,
    output,
    weight,
    EPS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """``output = rms_norm(x, weight)``."""
    row, offs_h = tl.program_id(0), tl.arange(0, BLOCK_H)
    values = load_row(x, row, offs_h, H)
    if HAS_WEIGHT:
        values = scaled(values, weight, offs_h, H, EPS)
    else:
        values *= tl.rsqrt(tl.sum(values * values, 0) / H + EPS)
    store_row(output, row, offs_h, values, H)


@triton.jit
def add_attention(
    residual,
    attended,
    x,
    dense_input,
    expert_input,
    post_norm,
    dense_norm,
    expert_norm,
    EPS: tl.constexpr,
    HAS_EXPERTS: tl.constexpr,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """The norms that follow see the sum as it is stored, rounded."""
    row, offs_h = tl.program_id(0), tl.arange(0, BLOCK_H)
    added = scaled(load_row(attended, row, offs_h, H), post_norm, offs_h, H, EPS)
    total = (load_row(residual, row, offs_h, H) + added).to(x.dtype.element_ty)
    store_row(x, row, offs_h, total, H)
    wide = total.to(tl.float32)
    store_row(dense_input, row, offs_h, scaled(wide, dense_norm, offs_h, H, EPS), H)
    if HAS_EXPERTS:
        store_row(expert_input, row, offs_h, scaled(wide, expert_norm, offs_h, H, EPS), H)


@triton.jit
def add_feed_forward(
    residual,
    dense,
    mixed,
    x,
    next_input,
    dense_norm,
    expert_norm,
    post_norm,
    next_norm,
    scalar,
    EPS: tl.constexpr,
    TOP_K: tl.constexpr,
    HAS_EXPERTS: tl.constexpr,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """The experts' outputs are summed in their order, so the sum is the same every time."""
    row, offs_h = tl.program_id(0), tl.arange(0, BLOCK_H)
    branch = load_row(dense, row, offs_h, H)
    if HAS_EXPERTS:
        summed = tl.zeros((BLOCK_H,), tl.float32)
        for choice in tl.static_range(TOP_K):
            summed += load_row(mixed, row * TOP_K + choice, offs_h, H)
        branch = scaled(branch, dense_norm, offs_h, H, EPS)
        branch += scaled(summed, expert_norm, offs_h, H, EPS)
    added = scaled(branch, post_norm, offs_h, H, EPS)
    total = (load_row(residual, row, offs_h, H) + added) * scalar
    rounded = total.to(x.dtype.element_ty)
    store_row(x, row, offs_h, rounded, H)
    store_row(next_input, row, offs_h, scaled(rounded.to(tl.float32), next_norm, offs_h, H, EPS), H)
