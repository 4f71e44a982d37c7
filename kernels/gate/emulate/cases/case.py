"""One call of an operation with small sizes, and how near its reference in float64 it has to be."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybrid.kernels import nvfp4
from hybrid.kernels.native import NativeMatrix, native_matrix
from hybrid.kernels.nvfp4 import PackedMatrix

Outputs = Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """An error may be `relative` of its number, `of_largest` of the largest, and `absolute`
    together, and all in the mean of squares `rms` of the numbers. Zeros: bit for bit.
    """

    relative: float = 0.0
    of_largest: float = 0.0
    absolute: float = 0.0
    rms: float = float("inf")

    def error(self, actual: Tensor, exact: Tensor) -> tuple[float, bool]:
        """The largest error over the largest number, and whether all is within the tolerance."""
        if self == EXACT:
            differ = _bits(actual) != _bits(exact)
            return float(differ.double().mean()) if differ.numel() else 0.0, not differ.any()
        actual, exact = actual.double(), exact.double()
        error = torch.where(actual == exact, 0.0, (actual - exact).abs())
        largest = exact.abs().amax()
        allowed = self.relative * exact.abs() + self.of_largest * largest + self.absolute
        is_near = bool((error <= allowed).all())
        squares = error.square().mean() <= self.rms**2 * exact.square().mean()
        return float(error.amax() / largest.clamp(min=1e-30)), is_near and bool(squares)


EXACT = Tolerance()
ONE_ROUNDING = Tolerance(relative=2**-8 * 1.01, absolute=1e-6)
PRODUCT = Tolerance(of_largest=0.005, rms=0.003)


def _bits(values: Tensor) -> Tensor:
    if values.is_floating_point():
        return values.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[values.itemsize])
    return values


@dataclass(frozen=True, slots=True)
class Trial:
    """`run` launches kernels, `reference` does not; both give as many tensors as tolerances."""

    run: Callable[[], Outputs]
    reference: Callable[[], Outputs]
    tolerances: tuple[Tolerance, ...]


ARCHITECTURES = (80, 86, 89, 90, 100, 120)


@dataclass(frozen=True, slots=True)
class Case:
    """`prepare` makes the operation's arguments. `architectures` are those that have it. Few
    `multiprocessors` give programs several tiles each; many have rows of attention split.
    """

    name: str
    prepare: Callable[[], Trial]
    architectures: tuple[int, ...] = ARCHITECTURES
    multiprocessors: int = 4


@contextmanager
def poisoned() -> Iterator[None]:
    """What operations allocate holds NaN and huge numbers."""
    settings: Any = torch.utils.deterministic
    filled, strict = (
        settings.fill_uninitialized_memory,
        torch.are_deterministic_algorithms_enabled(),
    )
    settings.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(strict)


def compare(
    operation: Callable[..., Tensor | tuple[Tensor | None, ...]],
    reference: Callable[..., Tensor | tuple[Tensor | None, ...]],
    arguments: Sequence[object],
    *tolerances: Tolerance,
    widened: Sequence[int] = (0,),
) -> Trial:
    """A trial of `operation`; its reference takes the arguments of these places in float64."""
    wide = [a.double() if i in widened else a for i, a in enumerate(arguments)]  # type: ignore[attr-defined]
    return Trial(
        lambda: outputs(operation(*arguments)), lambda: outputs(reference(*wide)), tolerances
    )


def outputs(result: Tensor | tuple[Tensor | None, ...]) -> Outputs:
    """An operation's result as tensors."""
    return (result,) if isinstance(result, Tensor) else [t for t in result if t is not None]


def normal(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Normally distributed numbers."""
    return (torch.randn(*shape) * scale).to(dtype)


def whole(limit: int, *shape: int) -> Tensor:
    """Integers below `limit`, int32."""
    return torch.randint(0, limit, shape, dtype=torch.int32)


def plain(*shape: int) -> Tensor:
    """Weights in bfloat16."""
    return normal(*shape, scale=0.05)


def packed(matrices: int, rows: int, columns: int) -> PackedMatrix:
    """Any codes, with scales and factors around one number."""
    codes = torch.randint(0, 16, (matrices, rows, columns), dtype=torch.uint8)
    scales = (torch.rand(matrices, rows, columns // 16) + 0.5).to(torch.float8_e4m3fn)
    factors = 0.02 + 0.01 * torch.rand(matrices, rows)
    return nvfp4.pack_matrix(nvfp4.pack_torch(codes), scales, factors)


def native(matrices: int, rows: int, columns: int) -> NativeMatrix:
    """The same for products of four bits by four bits."""
    return native_matrix(packed(matrices, rows, columns))
