"""What ends an emulation, and what is only noted."""

from dataclasses import dataclass


class Fault(Exception):
    """A GPU would stop here, or what it does is not defined: a bad address, a deadlock."""


class NotModelled(Exception):
    """The emulator does not know an instruction, or this use of it: the kernel is not covered."""


@dataclass(frozen=True, slots=True)
class Hazard:
    """An order or a value that PTX does not define, at an instruction of the kernel."""

    line: int
    instruction: str
    what: str

    def __str__(self) -> str:
        return f"{self.what}, at line {self.line}: {self.instruction}"
