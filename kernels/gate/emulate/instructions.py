"""Which file knows an instruction."""

from hybrid.kernels.gate.emulate import (
    access,
    bits,
    choice,
    control,
    convert,
    copies,
    floating,
    integer,
    matrices,
    mbarriers,
    tcgen05,
    warps,
    wgmma,
)
from hybrid.kernels.gate.emulate.faults import NotModelled
from hybrid.kernels.gate.emulate.machine import Build
from hybrid.kernels.gate.emulate.parse import Instruction
from hybrid.kernels.gate.emulate.pointwise import FLOAT_KINDS

_OTHERS: dict[str, Build] = {
    **access.BUILDERS,
    **bits.BUILDERS,
    **choice.BUILDERS,
    **control.BUILDERS,
    **convert.BUILDERS,
    **copies.BUILDERS,
    **matrices.BUILDERS,
    **mbarriers.BUILDERS,
    **tcgen05.BUILDERS,
    **warps.BUILDERS,
    **wgmma.BUILDERS,
}


def find_builder(instruction: Instruction) -> Build:
    """What makes a step of this instruction; `NotModelled` where nothing does."""
    name = instruction.name
    if name in floating.BUILDERS and instruction.modifiers[-1] in FLOAT_KINDS:
        return floating.BUILDERS[name]
    build = integer.BUILDERS.get(name) or _OTHERS.get(name)
    if build is None:
        raise NotModelled(instruction.opcode)
    return build
