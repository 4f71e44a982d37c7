"""Loops around matrix instructions, in the text that NVIDIA's disassembler makes of machine code.

A loop is what the branches say, not what stands between a label and a branch back to it: the
compiler puts blocks that are rarely needed, such as waiting again, behind everything else, and
these branch back too. So a loop is a block that lies on every way to another one from which a
branch leads back, and all blocks between the two.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_INSTRUCTION = re.compile(
    r"^\s+/\*(?P<address>[0-9a-f]+)\*/\s+(?P<predicate>@!?U?P\d+\s+)?"
    r"(?P<name>[A-Z][A-Za-z0-9_.]*)(?P<rest>.*)"
)
_LABEL = re.compile(r"^(\.L_x?_?\d+):")
_TARGET = re.compile(r"^(?P<operands>.*)`\((?P<label>\.L_x?_?\d+)\)")


@dataclass(frozen=True, slots=True)
class Loop:
    """Instructions of a loop around a matrix instruction, those of loops within it included.

    `loads` read global memory and wait for it. A loop that `encloses` another one such as itself
    has to load what the other one works on, so only innermost loops are without excuse.
    """

    instructions: int
    loads: int
    encloses: bool


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of machine code; `operands` is what follows the name, without the semicolon."""

    address: str
    name: str
    operands: str


@dataclass(slots=True)
class Block:
    """Instructions that run one after the other, and the numbers of the blocks that may follow."""

    instructions: list[Instruction] = field(default_factory=list)
    follows: list[int] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The instructions' names."""
        return [instruction.name for instruction in self.instructions]


def count_instructions(code: str) -> Counter[str]:
    """How often each instruction occurs."""
    lines = map(_INSTRUCTION.match, code.splitlines())
    return Counter(match["name"] for match in lines if match)


def is_matrix(instruction: str) -> bool:
    """HMMA, HGMMA, OMMA, UTCHMMA, ... but not what only mentions them, such as WARPGROUP."""
    return "MMA" in instruction.split(".")[0]


def matrix_loops(code: str) -> tuple[Loop, ...]:
    """Loops around matrix instructions by their size.

    If all turns of the only loops were unrolled, what stands between the first matrix instruction
    and the last is taken for a loop.
    """
    blocks = flow_graph(code)
    found = {
        head: body
        for head, body in _natural_loops(blocks).items()
        if any(is_matrix(name) for number in body for name in blocks[number].names)
    }
    if not found:
        return _unrolled([name for block in blocks for name in block.names])
    loops = []
    for body in found.values():
        names = [name for number in body for name in blocks[number].names]
        encloses = any(other < body for other in found.values())
        loops.append(Loop(len(names), _loads(names), encloses))
    return tuple(sorted(loops, key=lambda loop: (loop.instructions, loop.loads)))


def _unrolled(names: Sequence[str]) -> tuple[Loop, ...]:
    places = [place for place, name in enumerate(names) if is_matrix(name)]
    if not places:
        return ()
    stretch = names[places[0] : places[-1] + 1]
    return (Loop(len(stretch), _loads(stretch), encloses=False),)


def _loads(names: Sequence[str]) -> int:
    return sum(name.split(".")[0] == "LDG" for name in names)


def flow_graph(code: str) -> list[Block]:
    """Blocks in the order of the code, the first of them the entry."""
    blocks, labels, jumps = [Block()], dict[str, int](), list[tuple[int, str]]()
    for line in code.splitlines():
        if label := _LABEL.match(line):
            if blocks[-1].instructions:
                blocks[-1].follows.append(len(blocks))
                blocks.append(Block())
            labels[label[1]] = len(blocks) - 1
        instruction = _INSTRUCTION.match(line)
        if instruction is None:
            continue
        name, rest = instruction["name"], instruction["rest"]
        operands = rest.partition(";")[0].strip()
        blocks[-1].instructions.append(Instruction(instruction["address"], name, operands))
        kind, target = name.split(".")[0], _TARGET.match(rest)
        if kind not in ("BRA", "EXIT", "RET"):
            continue
        if kind == "BRA" and target:
            jumps.append((len(blocks) - 1, target["label"]))
        conditions = target["operands"].strip() if target else ""
        if instruction["predicate"] or conditions:
            blocks[-1].follows.append(len(blocks))
        blocks.append(Block())
    for number, target_label in jumps:
        blocks[number].follows.append(labels[target_label])
    for block in blocks:
        block.follows = [number for number in block.follows if number < len(blocks)]
    return blocks


def _natural_loops(blocks: Sequence[Block]) -> dict[int, frozenset[int]]:
    """Every loop's blocks by its head, the block that lies on all ways into it."""
    order = _reachable(blocks)
    before: dict[int, list[int]] = {number: [] for number in order}
    for number in order:
        for follower in blocks[number].follows:
            before[follower].append(number)
    heads = _dominators(order, before)
    loops: dict[int, set[int]] = {}
    for number in order:
        for head in blocks[number].follows:
            if head in heads[number]:
                loops.setdefault(head, {head}).update(_between(head, number, before))
    return {head: frozenset(body) for head, body in loops.items()}


def _reachable(blocks: Sequence[Block]) -> list[int]:
    """Blocks that can run, each after at least one that leads to it."""
    order, waiting = dict[int, None](), [0]
    while waiting:
        number = waiting.pop()
        if number not in order:
            order[number] = None
            waiting += blocks[number].follows
    return [*order]


def _dominators(order: Sequence[int], before: dict[int, list[int]]) -> dict[int, set[int]]:
    """Of every block those, itself included, that lie on all ways to it."""
    on_all_ways = {number: set(order) for number in order}
    on_all_ways[order[0]] = {order[0]}
    changed = True
    while changed:
        changed = False
        for number in order[1:]:
            found = set.intersection(*(on_all_ways[one] for one in before[number])) | {number}
            changed |= found != on_all_ways[number]
            on_all_ways[number] = found
    return on_all_ways


def _between(head: int, last: int, before: dict[int, list[int]]) -> Iterator[int]:
    """Blocks from which `last` can be reached without passing `head`, and `last`."""
    seen, waiting = {head}, [last]
    while waiting:
        number = waiting.pop()
        if number not in seen:
            seen.add(number)
            yield number
            waiting += before[number]
