"""A few kernels as they ship and with mistakes, emulated: run as a script, prints JSON.

A process of its own, since tests have Triton interpret.
"""

import json

import torch
import triton
import triton.language as tl

from hybrid.kernels.gate.emulate.launcher import emulated
from hybrid.kernels.gate.emulate.verdicts import all_cases, judge
from hybrid.kernels.launch import launch
from tests.kernels.emulate.mutants import Mutant

SHIPPED = (
    (80, "attention, full, 1 x 16 causal"),
    (90, "linear, bfloat16, 130"),
    (100, "linear, native, 20"),
    (120, "linear, native, 1"),
)
MISTAKES = (
    Mutant(80, "linear, bfloat16, 60", "linear_rows", "wait for copies", 0),
    Mutant(80, "linear, bfloat16, 60", "linear_rows", "swapped operands", 0),
    Mutant(80, "norm", "normalise", "barrier", 0),
    Mutant(90, "linear, bfloat16, 130", "linear_rows", "wait for products", 0),
    Mutant(90, "linear, bfloat16, 130", "linear_rows", "wgmma.fence", 0),
    Mutant(100, "linear, native, 20", "linear_native", "wait for an mbarrier", 0),
    Mutant(100, "linear, native, 20", "linear_native", "wait for stores", 2),
)


@triton.jit
def halves(words, numbers, ASSEMBLY: tl.constexpr):
    """Half h of word i to place 2i + h: by shifts, or taking pairs of elements as they come."""
    word, half = tl.arange(0, 256)[:, None], tl.arange(0, 2)[None, :]
    bits = tl.broadcast_to(tl.load(words + word), (256, 2))
    if ASSEMBLY:
        both = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r,r", [bits], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    else:
        both = ((bits >> (16 * half)) & 0xFFFF).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    tl.store(numbers + word + 256 * half, both)


def share_of_wrong_halves(architecture: int, *, assembly: bool) -> float:
    """What becomes of numbered halves."""
    numbers = torch.arange(512, dtype=torch.int16).view(256, 2)
    found = torch.zeros(2, 256, dtype=torch.int16)
    with emulated(architecture):
        launch(
            halves, (1,), numbers.view(torch.int32), found.view(torch.bfloat16), ASSEMBLY=assembly
        )
    return float((numbers != found.T).float().mean())


def main() -> None:
    torch.set_num_threads(1)
    cases = {case.name: case for case in all_cases()}
    shipped = {
        f"{name} / sm_{architecture}": judge(cases[name], architecture)
        for architecture, name in SHIPPED
    }
    unknown = judge(
        cases["random tokens"], 80, lambda _, ptx: ptx.replace("st.global", "st.weak.global")
    )
    found = {
        "shipped": {name: [v.status, v.instructions, v.details] for name, v in shipped.items()},
        "mistakes": {str(mutant): mutant.judged().status for mutant in MISTAKES},
        "halves": [share_of_wrong_halves(80, assembly=assembly) for assembly in (False, True)],
        "unknown": [unknown.status, unknown.details, unknown.settings],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
