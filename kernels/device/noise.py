"""The counter-based random numbers of `hybrid.kernels.noise`, bit for bit, on a GPU."""

import triton
import triton.language as tl

GOLDEN = tl.constexpr(0x9E3779B9)
STEP = tl.constexpr(2.0**-23)


@triton.jit
def mixed(words):
    """`mix` of 32-bit words."""
    words = words.to(tl.uint32)
    words = (words ^ (words >> 16)) * 0x7FEB352D
    words = (words ^ (words >> 15)) * 0x846CA68B
    return words ^ (words >> 16)


@triton.jit
def counted(key, counters):
    """The key of the element with this number under another key."""
    return mixed(key.to(tl.uint32) ^ (counters.to(tl.uint32) * GOLDEN))


@triton.jit
def gumbel(words):
    """Standard Gumbel noise of mixed words."""
    uniform = (words >> 9).to(tl.float32) * STEP + STEP / 2
    return -tl.log(-tl.log(uniform))


@triton.jit
def row_positions(
    seeds,
    canvas,
    step,
    keys,
    PURPOSE: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The keys of one row's positions."""
    row, offs_c = tl.program_id(0), tl.arange(0, BLOCK_C)
    key = mixed(tl.load(seeds + 2 * row).to(tl.uint32) ^ GOLDEN)
    key = counted(key, tl.load(seeds + 2 * row + 1))
    key = counted(key, tl.load(canvas + row))
    key = counted(key, tl.load(step + row))
    key = counted(key, tl.full((), PURPOSE, tl.uint32))
    words = counted(key, offs_c)
    tl.store(keys + row * POSITIONS + offs_c, words.to(tl.int32, bitcast=True), offs_c < POSITIONS)


@triton.jit(do_not_specialize=["count"])
def tokens_of(keys, tokens, count, V: tl.constexpr, BLOCK_N: tl.constexpr):
    """Uniform token ids: the high word of key times vocabulary."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    words = tl.load(keys + offs_n, mask=offs_n < count, other=0).to(tl.uint32, bitcast=True)
    tl.store(tokens + offs_n, ((words.to(tl.uint64) * V) >> 32).to(tl.int32), mask=offs_n < count)
