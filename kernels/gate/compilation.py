"""One launch compiled for a GPU that is not here, and what its machine code says about its speed.

Triton brings the whole way from Python to machine code, assembler and disassembler included, so
registers, spills and the inner loop's instructions can be read without a driver. The launch is
specialised as Triton's own launcher would: pointers and multiples of 16 are known as such, and ones
are constants.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid.kernels.gate.hazards import register_hazards
from hybrid.kernels.gate.machine_code import Loop, count_instructions, is_matrix, matrix_loops
from hybrid.kernels.launch import Launch

_POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.bool: "*i1",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_ALIGNED = [["tt.divisibility", 16]]


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the assembler used, in bytes and registers a thread, and columns of tensor memory.

    `matrix` is the matrix instruction that occurs most, "" without one; `loops` are all loops
    around one, the smallest first. `hazards` are instructions that touch registers of a product in
    flight; `assembly` are inline assembly operations that take several elements at a time.
    """

    registers: int
    stack: int
    spills: int
    shared_memory: int
    tensor_memory: int
    matrix: str
    loops: tuple[Loop, ...]
    hazards: tuple[str, ...] = ()
    assembly: int = 0

    @property
    def waiting_loads(self) -> int:
        """Loads that the innermost loop with most of them waits for."""
        return max((loop.loads for loop in self.loops if not loop.encloses), default=0)


def identity(launch: Launch) -> tuple[Any, ...]:
    """Equal for launches that compile to the same code."""
    signature, constants, aligned = _specialised(launch)
    return (
        launch.kernel.__name__,
        tuple(signature.items()),
        tuple(constants.items()),
        tuple(aligned),
        launch.num_warps,
        launch.num_stages,
    )


def compile_launch(launch: Launch, architecture: int) -> Compiled:
    """Compile for compute capability `architecture`; raises whatever Triton raises."""
    import triton
    from triton.backends.compiler import GPUTarget

    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    target = GPUTarget("cuda", architecture, 32)
    kernel = triton.compile(source_of(launch), target=target, options=options)
    return _read(kernel, Path(triton.__file__).parent / "backends" / "nvidia" / "bin")


def source_of(launch: Launch) -> Any:
    """What Triton compiles: the kernel, specialised for the launch's arguments."""
    from triton.compiler import ASTSource

    signature, constants, aligned = _specialised(launch)
    return ASTSource(
        fn=launch.kernel,
        signature=signature,
        constexprs=constants,
        attrs={(index,): _ALIGNED for index in aligned},
    )


def _specialised(launch: Launch) -> tuple[dict[str, str], dict[str, Any], list[int]]:
    """The arguments' types, the constants among them, and places of what 16 divides."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    aligned: list[int] = []
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        is_number = isinstance(value, int) and not isinstance(value, bool)
        is_number &= not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (is_number and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        signature[parameter.name] = _type(value)
        # Where a tensor's memory begins, 16 divides; a view may begin elsewhere.
        begin = value.storage_offset() * value.itemsize if isinstance(value, Tensor) else value
        if (isinstance(value, Tensor) or is_number) and begin % 16 == 0:
            aligned.append(index)
    return signature, constants, aligned


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"


def grouped_assembly(ttgir: str) -> int:
    """Inline assembly operations that take several elements of a tensor at a time.

    Which elements meet in one is the layout's choice, so their result may depend on it.
    """
    packed = re.findall(r"elementwise_inline_asm.*packed_element = (\d+)", ttgir)
    return sum(int(count) > 1 for count in packed)


def _read(kernel: Any, tools: Path) -> Compiled:
    """Run the assembler's own tools over the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        code = _output(tools / "nvdisasm", "-c", file.name)
    used = re.search(r"REG:(\d+)\s+STACK:(\d+)", usage)
    if used is None:
        raise RuntimeError(f"no resource usage in {usage[-200:]!r}")
    counts = count_instructions(code)
    matrix = Counter({name: n for name, n in counts.items() if is_matrix(name)})
    return Compiled(
        registers=int(used[1]),
        stack=int(used[2]),
        spills=sum(n for name, n in counts.items() if name.startswith(("LDL", "STL"))),
        shared_memory=kernel.metadata.shared,
        tensor_memory=getattr(kernel.metadata, "tmem_size", None) or 0,
        matrix=matrix.most_common(1)[0][0] if matrix else "",
        loops=matrix_loops(code),
        hazards=register_hazards(code),
        assembly=grouped_assembly(kernel.asm["ttgir"]),
    )


def _output(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
