"""PTX text to instructions.

Braces open scopes: Triton's inline assembly declares the same register and label names again and
again, each in braces of its own. Names are made unique here, so that nothing else needs to know.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from hybrid.kernels.gate.emulate.faults import NotModelled


@dataclass(frozen=True, slots=True)
class Register:
    """A register, by its place among all of the kernel; `bits` is 1 for a predicate."""

    index: int
    bits: int


@dataclass(frozen=True, slots=True)
class Number:
    """An immediate: an integer, or the bits of a float."""

    bits: int


@dataclass(frozen=True, slots=True)
class Name:
    """A special register, a parameter, a variable in memory or a label."""

    text: str


@dataclass(frozen=True, slots=True)
class Address:
    """``[base + offset]``."""

    base: "Register | Number | Name"
    offset: int


@dataclass(frozen=True, slots=True)
class Group:
    """``{a, b}``, or ``a|b`` of two results."""

    items: "tuple[Operand, ...]"


Operand = Register | Number | Name | Address | Group


@dataclass(frozen=True, slots=True)
class Guard:
    """``@p`` or ``@!p``."""

    register: Register
    negated: bool


@dataclass(frozen=True, slots=True)
class Instruction:
    """``@guard name.modifiers operands``, with its line in the text."""

    name: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Guard | None
    line: int
    text: str

    @property
    def opcode(self) -> str:
        """The name with its modifiers."""
        return ".".join((self.name, *self.modifiers))


@dataclass(slots=True)
class Kernel:
    """The kernel of a PTX text: its parameters' types by name, in order."""

    name: str
    parameters: dict[str, str]
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: list[Register] = field(default_factory=list)
    threads: int = 0


_PIECE = re.compile(r"\{[^{}]*\}|\[[^\]]*\]|[^,\s]+(?:\s*\|\s*[^,\s]+)?")
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)([^{]*)\{", re.S)
_STATEMENT = re.compile(
    r"\s*(?:([\w$]+:)(?!:)|([{}])|(\.(?:loc|file|pragma)[^\n;]*);?|([^;]*);)", re.S
)
_SKIPPED = re.compile(r"\.(loc|file|pragma|section)\b")


def parse(text: str) -> Kernel:
    """The only kernel of a PTX text."""
    entry = _ENTRY.search(text)
    if entry is None:
        raise NotModelled("the text has no kernel")
    found = re.findall(r"\.param\s+\.(\w+)[^,]*?(\w+_param_\d+)", entry[2])
    kernel = Kernel(entry[1], {name: kind for kind, name in found})
    required = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", entry[3])
    kernel.threads = int(required[1]) if required else 0
    body = _up_to_its_brace(re.sub(r"//.*", "", text[entry.end() :]))
    _Body(kernel, text.count("\n", 0, entry.end()) + 1).read(body)
    return kernel


def _up_to_its_brace(text: str) -> str:
    depth = 1
    for brace in re.finditer(r"[{}]", text):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return text[: brace.start()]
    raise NotModelled("the kernel's text does not end")


class _Body:
    """Reads statements one after the other, with the scopes that are open."""

    def __init__(self, kernel: Kernel, line: int) -> None:
        self._kernel = kernel
        self._first_line = line
        self._scopes: list[dict[str, Register]] = [{}]
        self._ranges: dict[str, int] = {}  # bits by prefix of a declared range, such as %r
        self._scope_names = [""]
        self._opened = 0
        self._labels_of: dict[str, set[str]] = {"": set()}

    def read(self, body: str) -> None:
        """All statements; labels are known before the branches to them are."""
        statements = list(_statements(body, self._first_line))
        self._find_labels(statements)
        for line, statement in statements:
            if statement == "{":
                self._opened += 1
                self._scopes.append({})
                self._scope_names.append(f"@{self._opened}")
            elif statement == "}":
                self._scopes.pop()
                self._scope_names.pop()
            elif statement.endswith(":"):
                label = self._label(statement[:-1])
                self._kernel.labels[label] = len(self._kernel.instructions)
            elif statement.startswith(".reg"):
                self._declare(statement)
            elif not _SKIPPED.match(statement):
                self._kernel.instructions.append(self._instruction(line, statement))

    def _find_labels(self, statements: list[tuple[int, str]]) -> None:
        names, opened = [""], 0
        for _, statement in statements:
            if statement == "{":
                opened += 1
                names.append(f"@{opened}")
                self._labels_of[names[-1]] = set()
            elif statement == "}":
                names.pop()
            elif statement.endswith(":"):
                self._labels_of[names[-1]].add(statement[:-1])

    def _label(self, name: str) -> str:
        for scope in reversed(self._scope_names):
            if name in self._labels_of[scope]:
                return name + scope
        return name

    def _declare(self, statement: str) -> None:
        kind, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.S).groups()  # type: ignore[union-attr]
        bits = 1 if kind == "pred" else int(kind[1:])
        for name in names.replace(" ", "").split(","):
            if "<" in name:
                self._ranges[name.split("<")[0]] = bits
            else:
                self._scopes[-1][name] = self._new(bits)

    def _new(self, bits: int) -> Register:
        register = Register(len(self._kernel.registers), bits)
        self._kernel.registers.append(register)
        return register

    def _instruction(self, line: int, statement: str) -> Instruction:
        text, guard = " ".join(statement.split()), None
        if guarded := re.match(r"@(!?)\s*(%?[\w$]+)\s+(.*)", text):
            guard = Guard(self._register(guarded[2]), bool(guarded[1]))
            text = guarded[3]
        opcode, _, rest = text.partition(" ")
        name, *modifiers = opcode.split(".")
        operands = tuple(self._operand(piece, name == "bra") for piece in _PIECE.findall(rest))
        return Instruction(name, tuple(modifiers), operands, guard, line, text)

    def _operand(self, piece: str, is_label: bool = False) -> Operand:
        piece = piece.strip()
        if is_label:
            return Name(self._label(piece))
        if piece.startswith("{"):
            return Group(tuple(self._operand(p) for p in piece[1:-1].split(",")))
        if piece.startswith("["):
            return self._address(piece[1:-1])
        if "|" in piece:
            return Group(tuple(self._operand(p) for p in piece.split("|")))
        if re.match(r"-?\d", piece):
            return Number(_number(piece))
        if self._is_register(piece):
            return self._register(piece)
        return Name(piece)

    def _address(self, inside: str) -> Address:
        base, _, offset = inside.replace(" ", "").partition("+")
        place = self._operand(base)
        if isinstance(place, Address | Group):
            raise NotModelled(f"the address [{inside}]")
        return Address(place, _number(offset) if offset else 0)

    def _is_register(self, name: str) -> bool:
        if any(name in scope for scope in self._scopes):
            return True
        prefix = re.match(r"(%[a-zA-Z]+)\d+$", name)
        return bool(prefix and prefix[1] in self._ranges)

    def _register(self, name: str) -> Register:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        prefix = re.match(r"(%[a-zA-Z]+)\d+$", name)
        if prefix is None or prefix[1] not in self._ranges:
            raise NotModelled(f"the register {name} is not declared")
        register = self._scopes[0][name] = self._new(self._ranges[prefix[1]])
        return register


def _number(text: str) -> int:
    if text[:2].lower() in ("0f", "0d"):
        return int(text[2:], 16)
    return int(text.rstrip("U"), 0)


def _statements(body: str, first_line: int) -> Iterator[tuple[int, str]]:
    """Statements, labels with their colons, and the braces of scopes, each with its line."""
    body = body.rstrip()
    at, line = 0, first_line
    while at < len(body):
        match = _STATEMENT.match(body, at)
        if match is None or not match.lastindex:
            raise NotModelled(f"the text {body[at : at + 40]!r}")
        start = match.start(match.lastindex)
        line += body.count("\n", at, start)
        yield line, match[match.lastindex].strip()
        line += body.count("\n", start, match.end())
        at = match.end()
