"""NVFP4 in tiles: the same numbers in another order, and what a kernel makes of them."""

import pytest
import torch
from torch import Tensor

from hybrid.kernels import nvfp4


def random_codes(experts: int, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Any bits: packed codes, finite scales, and factors."""
    generator = torch.Generator().manual_seed(rows + columns)
    packed = torch.randint(0, 256, (experts, rows, columns // 2), generator=generator)
    scale = torch.randint(0, 127, (experts, rows, columns // 16), generator=generator)
    factors = torch.rand(experts, rows, generator=generator)
    return packed.byte(), scale.byte().view(torch.float8_e4m3fn), factors


@pytest.mark.parametrize(
    ("experts", "rows", "columns"), [(1, 128, 64), (3, 200, 176), (2, 1, 16), (1, 257, 704)]
)
def test_unpacking_returns_every_bit(experts: int, rows: int, columns: int) -> None:
    packed, scale, factors = random_codes(experts, rows, columns)
    matrix = nvfp4.pack_matrix(packed, scale, factors)
    assert (matrix.rows, matrix.columns) == (rows, columns)
    back = nvfp4.unpack_matrix(matrix)
    is_zero = (scale.view(torch.uint8) == 0).repeat_interleave(8, -1)
    assert torch.equal(back[0], packed.masked_fill(is_zero, 0))
    assert torch.equal(back[1].view(torch.uint8), scale.view(torch.uint8))
    assert back[2] is factors


def test_tiles_are_whole_and_zero_where_the_matrix_ends() -> None:
    packed = torch.full((2, 130, 40), 0x77, dtype=torch.uint8)
    scale = torch.ones(2, 130, 5).to(torch.float8_e4m3fn)
    matrix = nvfp4.pack_matrix(packed, scale, torch.ones(2, 130))
    assert matrix.words.shape == (2, 2, 2, 128, 8)
    assert matrix.scales.shape == (2, 2, 2, 128, 4)
    assert not matrix.words[:, 1, :, 2:].any()
    assert nvfp4.unpack_matrix(matrix)[1].float().sum() == scale.numel()
    assert (matrix.scales > 0).sum() == scale.numel()


def test_a_dense_matrix_is_the_product_of_its_three_parts() -> None:
    packed, scale, factors = random_codes(2, 130, 80)
    matrix = nvfp4.pack_matrix(packed, scale, factors)
    codes = nvfp4.decode_e2m1_torch(nvfp4.unpack_torch(packed)).double()
    expected = codes * scale.double().repeat_interleave(16, -1) * factors[..., None].double()
    assert torch.equal(nvfp4.dense(matrix, torch.float64), expected)
    assert torch.equal(nvfp4.dense(matrix, torch.float32), expected.float())


def test_negative_scales_keep_their_numbers() -> None:
    packed, scale, factors = random_codes(1, 16, 64)
    negative = (scale.view(torch.uint8) | 128).view(torch.float8_e4m3fn)
    there = nvfp4.dense(nvfp4.pack_matrix(packed, scale, factors), torch.float32)
    assert torch.equal(
        nvfp4.dense(nvfp4.pack_matrix(packed, negative, factors), torch.float32), -there
    )
