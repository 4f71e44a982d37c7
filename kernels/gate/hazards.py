"""Registers of a Hopper product that are touched while it may still run, found in machine code.

A warp-group product (HGMMA) runs beside the instructions behind it. Until a wait covers it, its
first operand's registers may not be written, nor its sums read or written but by the next product.
ptxas 12.8 to 13.1 break that for first operands in registers: it gives them to other values as soon
as the product is issued (triton-lang/triton 9433, 9514 and 11781). What a GPU then computes is
undefined, and neither the interpreter nor the PTX shows it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from hybrid.kernels.gate.machine_code import Instruction, flow_graph

_REGISTER = re.compile(r"(?<![A-Z])R(\d+)\b")
_PRODUCT = re.compile(r"R(?P<sums>\d+), (?:R(?P<first>\d+)(?:\.reuse)?, )?gdesc\[\w+\]")
_SHAPE = re.compile(r"HGMMA\.\d+x(?P<columns>\d+)x\d+\.(?P<type>\w+)")
_WITHOUT_RESULT = (
    "ST", "RED", "BAR", "BRA", "EXIT", "LDGSTS", "LDGDEPBAR", "DEPBAR", "WARPGROUP", "WARPSYNC",
    "MEMBAR", "FENCE", "SYNCS", "CCTL", "NOP", "ERRBAR", "BSYNC", "BSSY", "RET", "UBLKCP",
)  # fmt: skip
_MOST_GROUPS = 8  # that are followed; a wait that leaves more in flight is taken for none


@dataclass(frozen=True, slots=True)
class _Group:
    """Registers of the products of one commit: what they read, and where they sum."""

    reads: frozenset[int] = frozenset()
    sums: frozenset[int] = frozenset()

    def __or__(self, other: "_Group") -> "_Group":
        return _Group(self.reads | other.reads, self.sums | other.sums)


# Products not yet committed, then the committed groups in flight, the newest first.
_State = tuple[_Group, ...]
_NONE: _State = (_Group(),)


def register_hazards(code: str) -> tuple[str, ...]:
    """Instructions of `code`, by address, that touch registers of a product in flight."""
    blocks = flow_graph(code)
    entering: dict[int, _State] = {0: _NONE}
    waiting = [0]
    while waiting:
        number = waiting.pop()
        leaving = entering[number]
        for instruction in blocks[number].instructions:
            leaving = _after(instruction, leaving)
        for follower in blocks[number].follows:
            joined = _joined(entering.get(follower, ()), leaving)
            if joined != entering.get(follower):
                entering[follower] = joined
                waiting.append(follower)
    found: dict[str, None] = {}
    for number, state in entering.items():
        for instruction in blocks[number].instructions:
            if any(_touches(instruction, state)):
                found[f"{instruction.address} {instruction.name} {instruction.operands}"] = None
            state = _after(instruction, state)
    return tuple(sorted(found))


def _after(instruction: Instruction, state: _State) -> _State:
    if instruction.name.startswith("HGMMA"):
        state = (state[0] | _product(instruction), *state[1:])
        if "gsb0" in instruction.operands:
            state = (_Group(), *state[:_MOST_GROUPS])
    elif instruction.name.startswith("WARPGROUP.DEPBAR"):
        left = int(instruction.operands.split(",")[1], 16)
        state = state[: 1 + left]
    return state


def _joined(one: _State, other: _State) -> _State:
    """What may be in flight where two ways meet."""
    shorter, longer = sorted((one, other), key=len)
    both = (a | b for a, b in zip(shorter, longer, strict=False))
    return (*both, *longer[len(shorter) :])


def _product(instruction: Instruction) -> _Group:
    registers, shape = _PRODUCT.match(instruction.operands), _SHAPE.match(instruction.name)
    if registers is None or shape is None:
        raise ValueError(f"not a product: {instruction.name} {instruction.operands}")
    size = int(shape["columns"]) // (2 if shape["type"] == "F32" else 4)
    sums = _span(int(registers["sums"]), size)
    first = registers["first"]
    return _Group(_span(int(first), 4) if first else frozenset(), sums)


def _touches(instruction: Instruction, state: _State) -> Iterator[bool]:
    """Whether the instruction breaks a rule for each of the groups."""
    name = instruction.name
    written = _written(instruction)
    used = {int(number) for number in _REGISTER.findall(instruction.operands)} | written
    own = _product(instruction).sums if name.startswith("HGMMA") else frozenset()
    for group in state:
        if own:
            # The next product may add to the same sums: products of one warp group run in turn.
            yield bool(own & group.reads) or bool(own & group.sums and own != own & group.sums)
        else:
            yield bool(written & group.reads) or bool(used & group.sums)


def _written(instruction: Instruction) -> frozenset[int]:
    """Numbers of the registers that an instruction writes, but for products."""
    name = instruction.name
    kind = name.split(".")[0]
    if kind.startswith(_WITHOUT_RESULT) or kind.endswith("SETP") or kind in ("HGMMA", "R2P"):
        return frozenset()
    operands = [part.strip() for part in instruction.operands.split(",")]
    while operands and re.fullmatch(r"!?U?P(\d+|T)|PR", operands[0]):
        operands = operands[1:]
    first = _REGISTER.match(operands[0]) if operands else None
    return _span(int(first[1]), _width(name)) if first else frozenset()


def _width(name: str) -> int:
    """Registers of a result."""
    parts = name.split(".")
    if parts[0] in ("HMMA", "IMMA"):
        return 4
    if parts[0] == "LDSM":
        return int(parts[-1]) if parts[-1] in ("2", "4") else 1
    if "128" in parts:
        return 4
    wide = {"64", "WIDE", "CS2R"} & set(parts)
    return 2 if (wide and "32" not in parts) or parts[0] in ("DADD", "DMUL", "DFMA") else 1


def _span(first: int, count: int) -> frozenset[int]:
    return frozenset(range(first, first + count))
