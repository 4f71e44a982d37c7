"""Corrections to Triton's interpreter, without which kernels are tested against wrong arithmetic.

The interpreter keeps bfloat16 as 16-bit integers and computes with those, truncates where hardware
rounds to the nearest even number, rounds e4m3 upwards, reads NVFP4's e4m3 scales as exponents, and
on some versions of numpy cannot count in a loop. None of it raises an error. `correct` mends this
for Triton 3.6 to 3.9; tests/kernels/test_interpreter.py holds both what it does and that each
correction is still needed.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]

_E4M3_VALUES: Array = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
_E4M3_MAX = 448.0
_E2M1_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E2M1_VALUES: Array = np.array([*_E2M1_MAGNITUDES, *(-v for v in _E2M1_MAGNITUDES)], np.float32)


def bfloat16_values(bits: Array) -> Array:
    """float32 values of bfloat16 bits, uint16."""
    wide = np.ascontiguousarray(bits).astype(np.uint32) << 16
    return wide.view(np.float32).reshape(np.shape(bits))


def bfloat16_bits(values: Array) -> Array:
    """uint16 bits of the nearest bfloat16, ties to even; every NaN becomes the quiet one."""
    exact = np.ascontiguousarray(values, dtype=np.float32)
    bits = exact.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(exact), np.uint16(0x7FC0), rounded).reshape(np.shape(values))


def e4m3_bits(values: Array) -> Array:
    """uint8 bits of the nearest e4m3 number, ties to even, saturating as the hardware's cvt."""
    clipped = np.clip(np.ascontiguousarray(values, dtype=np.float32), -_E4M3_MAX, _E4M3_MAX)
    narrow = torch.from_numpy(clipped).to(torch.float8_e4m3fn)
    return narrow.view(torch.uint8).numpy().reshape(np.shape(values))


def correct() -> None:
    """Mend the interpreter of this process; nothing happens where Triton compiles."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    import triton.runtime.interpreter as interpreter

    if not hasattr(interpreter, "corrected"):
        interpreter.corrected = True
        _correct_arithmetic(interpreter)
        _correct_conversions(interpreter)
        _correct_products(interpreter)
        _correct_counting(interpreter)


def _correct_arithmetic(interpreter: Any) -> None:
    """Element by element in float32, rounded once to bfloat16."""
    import triton.language as tl

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    bitwise = (np.bitwise_and, np.bitwise_or, np.bitwise_xor)
    binary, unary = builder.binary_op, builder.unary_op
    ternary, fused = builder.ternary_op, builder.create_fma

    def is_bfloat16(value: Any) -> bool:
        return bool(value.dtype.scalar == tl.bfloat16)

    def rounded(output: Array) -> Any:
        if output.dtype == np.bool_:
            return handle(output, tl.bfloat16)  # a comparison, whose type Triton sets itself
        return handle(bfloat16_bits(output), tl.bfloat16)

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if op in bitwise or not (is_bfloat16(lhs) or is_bfloat16(rhs)):
            return binary(self, lhs, rhs, op)
        return rounded(op(values_of(lhs, tl), values_of(rhs, tl)))

    def unary_op(self: Any, arg: Any, op: Any) -> Any:
        return rounded(op(values_of(arg, tl))) if is_bfloat16(arg) else unary(self, arg, op)

    def ternary_op(self: Any, lhs: Any, rhs: Any, other: Any, op: Any) -> Any:
        if op is np.where or not is_bfloat16(lhs):
            return ternary(self, lhs, rhs, other, op)
        return rounded(op(*(values_of(value, tl) for value in (lhs, rhs, other))))

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if not is_bfloat16(z):
            return fused(self, x, y, z)
        return rounded(values_of(x, tl) * values_of(y, tl) + values_of(z, tl))

    builder.binary_op, builder.unary_op = binary_op, unary_op
    builder.ternary_op, builder.create_fma = ternary_op, create_fma
    builder.get_bf16 = lambda self, value: rounded(np.array([value], np.float32))


def values_of(value: Any, tl: Any) -> Array:
    """An interpreter's tensor in float32."""
    kind = value.dtype.scalar
    if kind == tl.bfloat16:
        return bfloat16_values(value.data)
    if kind == tl.float8e4nv:
        return np.asarray(_E4M3_VALUES[value.data])
    return np.asarray(value.data.astype(np.float32))


def _correct_conversions(interpreter: Any) -> None:
    """To and from bfloat16 and e4m3 through float32, to the nearest, ties to even."""
    import triton.language as tl

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    cast, between_floats = builder.cast_impl, builder.create_fp_to_fp
    wrong = (tl.bfloat16, tl.float8e4nv)

    def converted(source: Any, kind: Any) -> Any:
        values = values_of(source, tl)
        if kind == tl.bfloat16:
            return handle(bfloat16_bits(values), kind)
        if kind == tl.float8e4nv:
            return handle(e4m3_bits(values), kind)
        return handle(values.astype(interpreter._get_np_dtype(kind)), kind)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        before, after = source.dtype.scalar, target.scalar
        if before != after and (before in wrong or after in wrong):
            return converted(source, after)
        return cast(self, source, target)

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        before, after = source.dtype.scalar, target.scalar
        if before in wrong or after in wrong:
            return converted(source, after)
        return between_floats(self, source, target, rounding)

    builder.cast_impl, builder.create_fp_to_fp = cast_impl, create_fp_to_fp


def _correct_products(interpreter: Any) -> None:
    """Matrix products of bfloat16, e4m3 and NVFP4 with float32 sums."""
    import triton.language as tl

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    semantic = interpreter.TritonSemantic
    dot, scaled_dot = builder.create_dot, semantic.dot_scaled
    wrong = (tl.bfloat16, tl.float8e4nv)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *settings: Any) -> Any:
        if a.dtype.scalar not in wrong and b.dtype.scalar not in wrong:
            return dot(self, a, b, d, *settings)
        product = np.matmul(values_of(a, tl), values_of(b, tl)) + d.data
        return handle(product.astype(d.data.dtype), d.dtype.scalar)

    def create_dot_scaled(
        self: Any, lhs: Any, lhs_scale: Any, lhs_format: Any, rhs: Any, rhs_scale: Any,
        rhs_format: Any, fast_math: Any, lhs_k_pack: bool, rhs_k_pack: bool, acc: Any,
    ) -> Any:  # fmt: skip
        packed = interpreter._ir.ScaleDotElemTypeTY.E2M1

        def operand(value: Any, scale: Any, form: Any, pairs_along: int) -> Array:
            plain = _unpacked(value.data, pairs_along) if form == packed else values_of(value, tl)
            return plain if scale is None else _scaled(plain, scale, tl, is_rhs=value is rhs)

        left = operand(lhs, lhs_scale, lhs_format, -1 if lhs_k_pack else -2)
        right = operand(rhs, rhs_scale, rhs_format, -2 if rhs_k_pack else -1)
        return handle((np.matmul(left, right) + acc.data).astype(np.float32), tl.float32)

    def dot_scaled(
        self: Any, lhs: Any, lhs_scale: Any, lhs_format: Any, rhs: Any, rhs_scale: Any,
        rhs_format: Any, *rest: Any, **named: Any,
    ) -> Any:  # fmt: skip
        formats = (_Text.of(lhs_format), _Text.of(rhs_format))
        return scaled_dot(
            self, lhs, lhs_scale, formats[0], rhs, rhs_scale, formats[1], *rest, **named
        )

    builder.create_dot, builder.create_dot_scaled = create_dot, create_dot_scaled
    semantic.dot_scaled = dot_scaled


class _Text(str):
    """A format's name that also has the `value` which Triton 3.6 asks it for."""

    @classmethod
    def of(cls, text: Any) -> "_Text":
        return cls(getattr(text, "value", text))

    @property
    def value(self) -> str:
        return str(self)


def _unpacked(data: Array, axis: int) -> Array:
    """float32 values of e2m1 codes, two a byte along `axis`, the first in the low nibble."""
    codes = np.moveaxis(data.view(np.uint8), axis, -1)
    pairs = np.stack((codes & 15, codes >> 4), -1).reshape(*codes.shape[:-1], -1)
    return np.moveaxis(_E2M1_VALUES[pairs], -1, axis)


def _scaled(plain: Array, scale: Any, tl: Any, *, is_rhs: bool) -> Array:
    """Values times their groups' scales [M or N, groups], e4m3 numbers or e8m0 exponents."""
    if scale.dtype.scalar == tl.float8e4nv:
        factors = _E4M3_VALUES[scale.data]
    else:
        factors = np.exp2(scale.data.view(np.uint8).astype(np.float32) - 127)
    group = plain.shape[-2 if is_rhs else -1] // factors.shape[-1]
    wide = np.repeat(factors, group, axis=-1)
    product: Array = plain * (np.swapaxes(wide, -1, -2) if is_rhs else wide)
    return product


def _correct_counting(interpreter: Any) -> None:
    """A program's number as a loop's start, which numpy 2.4 no longer takes for an integer."""
    patch: Callable[..., Any] = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)

        def index(self: Any) -> int:
            return int(np.asarray(self.handle.data).reshape(-1)[0])

        if scope:
            scope[0].set_attr(tensor, "__index__", index)
        else:
            tensor.__index__ = index

    interpreter._patch_lang_tensor = patch_lang_tensor
