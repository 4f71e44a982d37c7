"""The two published spellings of NVFP4 weights, read as plain matrices.

ModelOpt stores a packed `weight` and multiplies by `weight_scale_2`; compressed-tensors stores
`weight_packed` and divides by `weight_global_scale`. Only weights are 4-bit here: the scales of
activations that both also store serve 4-bit arithmetic and are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from hybrid.gemma.checkpoint.tensors import FLOATS, Checkpoint
from hybrid.gemma.fields import LARGEST, Fields
from hybrid.kernels.nvfp4 import BLOCK, E2M1_MAX, E4M3_MAX, dequantize_torch

Convention = Literal["plain", "modelopt", "compressed-tensors"]
ACTIVATION_SCALES = ("input_scale", "input_global_scale", ".k_scale", ".v_scale")


def read_convention(directory: Path) -> Convention:
    """How the model folder stores its matrices; CheckpointError for a quantization not known."""
    config = Fields.read(directory / "config.json")
    older = directory / "hf_quant_config.json"
    if config.get("quantization_config") is not None:
        section = config.section("quantization_config")
    elif older.exists():
        section = Fields.read(older).section("quantization")
        section.choice("quant_algo", ["NVFP4"])
        return "modelopt"
    else:
        return "plain"
    if section.choice("quant_method", ["modelopt", "compressed-tensors"]) == "modelopt":
        section.choice("quant_algo", ["NVFP4"])
        return "modelopt"
    section.choice("format", ["nvfp4-pack-quantized"])
    return "compressed-tensors"


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """An NVFP4 matrix [N, K] as its file has it.

    ``packed`` uint8 [N, K/2], ``scales`` float8_e4m3fn [N, K/16], and what multiplies every number,
    or divides it where `divides`: a positive float32.
    """

    packed: Tensor
    scales: Tensor
    outer: Tensor
    divides: bool

    @property
    def factor(self) -> float:
        """What multiplies every number."""
        return 1 / self.outer.item() if self.divides else self.outer.item()

    def decoded(self) -> Tensor:
        """The matrix in float32."""
        plain = dequantize_torch(self.packed, self.scales, torch.ones(()))
        return plain / self.outer if self.divides else plain * self.outer


class MatrixReader:
    """Reads a checkpoint's matrices in float32 or their stored float dtype, quantized or not."""

    def __init__(self, checkpoint: Checkpoint, convention: Convention) -> None:
        self._checkpoint = checkpoint
        self._convention = convention

    def is_quantized(self, name: str) -> bool:
        """Whether the linear layer `name` (without `.weight`) is stored in NVFP4."""
        if self._convention == "compressed-tensors":
            parts = [f"{name}.{part}" in self._checkpoint for part in ("weight", "weight_scale")]
            return f"{name}.weight_packed" in self._checkpoint or parts == [False, True]
        if self._convention == "modelopt":
            return self._checkpoint.holds_bytes(f"{name}.weight")
        return False

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        """The matrix [N, K] of the linear layer `name` (without `.weight`)."""
        if self.is_quantized(name):
            return self.stored(name, shape).decoded()
        return self._checkpoint.numbers(f"{name}.weight", shape)

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Check the linear layer by headers alone: all tensors there, and of the right form."""
        if self.is_quantized(name):
            self._check_parts(name, shape)
        else:
            self._checkpoint.check(f"{name}.weight", shape, FLOATS)

    def stored(self, name: str, shape: Sequence[int]) -> StoredMatrix:
        """The quantized matrix [N, K] of the linear layer `name` as it is stored."""
        packed_name, scale_name, outer_name = self._check_parts(name, shape)
        packed, scales = self._checkpoint.read(packed_name), self._checkpoint.read(scale_name)
        if ((scales.view(torch.uint8) & 127) == 127).any():
            raise self._checkpoint.error(scale_name, "holds NaN")
        divides = self._convention == "compressed-tensors"
        return StoredMatrix(packed, scales, self._factor(outer_name, divides), divides)

    def _check_parts(self, name: str, shape: Sequence[int]) -> tuple[str, str, str]:
        """Names of a quantized layer's codes, scales and last factor, their headers checked."""
        divides = self._convention == "compressed-tensors"
        packed = f"{name}.weight_packed" if divides else f"{name}.weight"
        outer = f"{name}.weight_global_scale" if divides else f"{name}.weight_scale_2"
        scales = f"{name}.weight_scale"
        rows, columns = shape
        if columns % BLOCK:
            raise self._checkpoint.error(
                packed, f"NVFP4 needs a multiple of {BLOCK} columns, not {columns}"
            )
        self._checkpoint.check(packed, (rows, columns // 2), (torch.uint8,))
        self._checkpoint.check(scales, (rows, columns // BLOCK), (torch.float8_e4m3fn,))
        self._checkpoint.check(outer, dtypes=(torch.float32,))
        found = self._checkpoint.describe(outer)[1]
        if found not in ((), (1,)):
            raise self._checkpoint.error(outer, f"expected one number, found {[*found]}")
        return packed, scales, outer

    def _factor(self, name: str, divides: bool) -> Tensor:
        factor = self._checkpoint.read(name).reshape(())
        number = factor.item()
        if not 0 < number <= LARGEST or 1 / number > LARGEST:
            raise self._checkpoint.error(name, f"{number} is not above zero and finite")
        if (1 / number if divides else number) * E2M1_MAX * E4M3_MAX > LARGEST:
            raise self._checkpoint.error(name, f"{number} makes numbers that are not finite")
        return factor
