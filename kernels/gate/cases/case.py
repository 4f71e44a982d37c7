"""One call of an operation at the real model's size, and what its machine code must have.

Tensors are on the `meta` device: they have shapes and no memory. What a case launches with the
settings that ship is what is compiled. Sizes are those of DiffusionGemma 26B-A4B.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hybrid.kernels.native import NativeMatrix
from hybrid.kernels.nvfp4 import TILE_COLUMNS, TILE_ROWS, PackedMatrix

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


def packed(matrices: int, rows: int, columns: int) -> PackedMatrix:
    """Weights of four bits, decoded by the kernel, without memory."""
    tiles = (matrices, -(-rows // TILE_ROWS), -(-columns // TILE_COLUMNS), TILE_ROWS)
    words = meta(*tiles, TILE_COLUMNS // 8, dtype=torch.int32)
    scales = meta(*tiles, TILE_COLUMNS // 16, dtype=torch.uint8)
    factors = meta(matrices, rows, dtype=torch.float32)
    return PackedMatrix(words, scales, factors, rows, columns)


def native_matrix(matrices: int, rows: int, columns: int) -> NativeMatrix:
    """Weights of four bits that the tensor core multiplies itself, without memory."""
    tiles = (matrices, -(-rows // TILE_ROWS), -(-columns // TILE_COLUMNS), TILE_ROWS)
    codes = meta(*tiles, TILE_COLUMNS // 2, dtype=torch.uint8)
    scales = meta(*tiles, TILE_COLUMNS // 16, dtype=torch.float8_e4m3fn)
    factors = meta(matrices, rows, dtype=torch.float32)
    return NativeMatrix(codes, scales, factors, rows, columns)
