"""Every different launch that the cases make, by architecture: what the gate works on."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hybrid.kernels.gate.cases.attention import attention_cases
from hybrid.kernels.gate.cases.case import Case
from hybrid.kernels.gate.cases.experts import expert_cases
from hybrid.kernels.gate.cases.linear import linear_cases
from hybrid.kernels.gate.cases.native import native_cases
from hybrid.kernels.gate.cases.quantizing import quantizing_cases
from hybrid.kernels.gate.cases.rows import row_cases
from hybrid.kernels.gate.cases.vocabulary import vocabulary_cases
from hybrid.kernels.gate.compilation import identity
from hybrid.kernels.launch import Launch, recording

ARCHITECTURES = (90, 100, 120)


@dataclass(frozen=True, slots=True)
class Job:
    """One launch to compile: of the case's launches of this kernel, the one of this number."""

    case: Case
    launch: Launch
    architecture: int
    number: int = 1

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        return str(self.launch.kernel.__name__)

    @property
    def key(self) -> str:
        """What its instruction count is recorded under."""
        which = self.kernel if self.number == 1 else f"{self.kernel} {self.number}"
        return f"{self.case.name} / {which} / sm_{self.architecture}"


def cases() -> list[Case]:
    """Every case, in the order of a step."""
    layers = [
        *attention_cases(),
        *row_cases(),
        *expert_cases(),
        *linear_cases(),
        *native_cases(),
    ]
    return [*layers, *vocabulary_cases(), *quantizing_cases()]


def list_jobs(part: str, architectures: Sequence[int]) -> Iterator[Job]:
    """Every different launch of the cases whose names contain `part`."""
    for architecture in architectures:
        seen = set()
        for case in cases():
            if part not in case.name or architecture not in case.matrix:
                continue
            with recording(architecture) as launches:
                case.call()
            numbers: Counter[str] = Counter()
            for launch in launches:
                numbers[launch.kernel.__name__] += 1
                if (mark := identity(launch)) not in seen:
                    seen.add(mark)
                    yield Job(case, launch, architecture, numbers[launch.kernel.__name__])
