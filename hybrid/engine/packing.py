"""Matrices on their way into the kernels' layout: rows in turn, experts in one block of memory."""

import torch
from torch import Tensor

from hybrid.engine.weights import Matrix
from hybrid.kernels.nvfp4 import PackedMatrix


class Stack:
    """Matrices of `count` experts in one block of memory, made when the first one is put there."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._tensors: tuple[Tensor, ...] = ()
        self._like: Matrix | None = None

    def put(self, index: int, matrix: Matrix) -> None:
        """Take over one expert's matrix; all must be of one form."""
        parts = _parts(matrix)
        if not self._tensors:
            self._like = matrix
            self._tensors = tuple(part.new_empty(self._count, *part.shape) for part in parts)
        for whole, part in zip(self._tensors, parts, strict=True):
            whole[index].copy_(part)

    def whole(self) -> Matrix:
        """All of them."""
        like = self._like
        if like is None or isinstance(like, Tensor):
            return self._tensors[0]
        codes, scales, factors = self._tensors
        kind = type(like)
        return kind(codes, scales.view(like.scales.dtype), factors, like.rows, like.columns)


def _parts(matrix: Matrix) -> tuple[Tensor, ...]:
    if isinstance(matrix, Tensor):
        return (matrix,)
    codes = matrix.words if isinstance(matrix, PackedMatrix) else matrix.codes
    return codes[0], as_bytes(matrix.scales[0]), matrix.factors[0]


def as_bytes(scales: Tensor) -> Tensor:
    """e4m3 numbers as bytes: torch concatenates and copies those everywhere."""
    return scales.view(torch.uint8)


def interleave_rows(first: Tensor, second: Tensor) -> Tensor:
    """Two tensors' rows in turn."""
    return torch.stack((first, second), 1).flatten(0, 1)
