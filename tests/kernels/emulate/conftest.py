"""Kernels written in PTX by hand, run for two CTAs of 32 or more threads."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid.kernels.gate.emulate.instructions import find_builder
from hybrid.kernels.gate.emulate.machine import Machine
from hybrid.kernels.gate.emulate.memory import GlobalMemory
from hybrid.kernels.gate.emulate.parse import parse

KERNEL = """
.version 8.7
.extern .shared .align 16 .b8 global_smem[];
.visible .entry tested(
 .param .u64 .ptr .global .align 1 tested_param_0,
 .param .u64 .ptr .global .align 1 tested_param_1
)
.reqntid {threads}
{{
 .reg .pred %p<9>;
 .reg .b16 %rs<9>;
 .reg .b32 %r<300>;
 .reg .b64 %rd<20>;
 ld.param.b64 %rd1, [tested_param_0];
 ld.param.b64 %rd2, [tested_param_1];
 mov.u32 %r1, %tid.x;
 mul.wide.u32 %rd3, %r1, 4;
 add.s64 %rd4, %rd1, %rd3;
 add.s64 %rd5, %rd2, %rd3;
{body}
 ret;
}}
"""


@dataclass(frozen=True)
class Outcome:
    """What the kernel left at its second argument, and the hazards' words."""

    words: NDArray[np.uint32]
    hazards: list[str]


Run = Callable[..., Outcome]


@pytest.fixture
def run() -> Run:
    """Runs a body: %r1 is the thread, %rd4 the thread's place in `given`, %rd5 in the results."""

    def run_body(
        body: str, given: Any = None, *, threads: int = 32, ctas: int = 1, results: int = 4096
    ) -> Outcome:
        text = KERNEL.format(threads=threads, body=body)
        data = np.zeros(4096, np.uint8) if given is None else np.ascontiguousarray(given)
        memory = GlobalMemory([data.view(np.uint8).reshape(-1), np.zeros(4 * results, np.uint8)])
        kernel = parse(text)
        arguments = dict(zip(kernel.parameters, memory.addresses, strict=True))
        machine = Machine(
            kernel, find_builder, memory, arguments, threads=threads, ctas=ctas, shared_bytes=32768
        )
        machine.run(range(ctas), (ctas, 1, 1))
        words = memory.contents(1, 4 * results).view(np.uint32).copy()
        return Outcome(words, [hazard.what for hazard in machine.hazards.values()])

    return run_body
