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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]*)", re.M)
_LABEL = re.compile(r"^(\.L_x?_?\d+):")
_BRANCH = re.compile(r"BRA\S*\s.*`\((\.L_x?_?\d+)\)")


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the assembler used, in bytes and registers a thread, and columns of tensor memory.

    `matrix` is the matrix instruction that occurs most, "" without one; `loop` counts the
    instructions of the smallest loop around one, `loop_loads` those among them that read global
    memory and wait for it.
    """

    registers: int
    stack: int
    spills: int
    shared_memory: int
    tensor_memory: int
    matrix: str
    loop: int
    loop_loads: int


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
    from triton.compiler import ASTSource

    signature, constants, aligned = _specialised(launch)
    source = ASTSource(
        fn=launch.kernel,
        signature=signature,
        constexprs=constants,
        attrs={(index,): _ALIGNED for index in aligned},
    )
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    target = GPUTarget("cuda", architecture, 32)
    kernel = triton.compile(source, target=target, options=options)
    return _read(kernel, Path(triton.__file__).parent / "backends" / "nvidia" / "bin")


def _specialised(launch: Launch) -> tuple[dict[str, str], dict[str, Any], list[int]]:
    """The arguments' types, the constants among them, and places of what 16 divides."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    aligned: list[int] = []
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if parameter.is_constexpr or value is None or (is_number and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        signature[parameter.name] = _type(value)
        if isinstance(value, Tensor) or (is_number and value % 16 == 0):
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
    counts = Counter(_INSTRUCTION.findall(code))
    matrix = Counter({name: n for name, n in counts.items() if _is_matrix(name)})
    loop = _inner_loop(code)
    return Compiled(
        registers=int(used[1]),
        stack=int(used[2]),
        spills=sum(n for name, n in counts.items() if name.startswith(("LDL", "STL"))),
        shared_memory=kernel.metadata.shared,
        tensor_memory=getattr(kernel.metadata, "tmem_size", None) or 0,
        matrix=matrix.most_common(1)[0][0] if matrix else "",
        loop=sum(loop.values()),
        loop_loads=sum(n for name, n in loop.items() if name.split(".")[0] == "LDG"),
    )


def _output(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _is_matrix(instruction: str) -> bool:
    """HMMA, HGMMA, OMMA, UTCHMMA, ... but not what only mentions them, such as WARPGROUP."""
    return "MMA" in instruction.split(".")[0]


def _inner_loop(code: str) -> Mapping[str, int]:
    """Instructions of the smallest loop with a matrix instruction, empty if there is none."""
    lines = code.splitlines()
    labels: dict[str, int] = {}
    smallest: Counter[str] = Counter()
    for number, line in enumerate(lines):
        if label := _LABEL.match(line):
            labels[label[1]] = number
        branch = _BRANCH.search(line)
        if branch is None or branch[1] not in labels:
            continue
        body = Counter(_INSTRUCTION.findall("\n".join(lines[labels[branch[1]] : number + 1])))
        if any(map(_is_matrix, body)) and (not smallest or body.total() < smallest.total()):
            smallest = body
    return smallest
