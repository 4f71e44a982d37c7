"""Mistakes put into compiled kernels one at a time: does the emulator notice?

``python -m tests.kernels.emulate.mutants`` tries every place of every kind in a few kernels and
prints those that go unnoticed, and the share that is noticed.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from hybrid.kernels.gate.emulate.verdicts import PASSED, Verdict, all_cases, judge

REMOVED = {
    "barrier": r"bar\.sync\s+0;",
    "wait for copies": r"cp\.async\.wait_group\s+\d+;",
    "wait for products": r"wgmma\.wait_group\.sync\.aligned\s+\d+;",
    "wgmma.fence": r"wgmma\.fence\.sync\.aligned;",
    "fence.proxy.async": r"fence\.proxy\.async\.shared::cta;",
    "wait for stores": r"tcgen05\.wait::st\.sync\.aligned;",
    "wait for loads": r"tcgen05\.wait::ld\.sync\.aligned;",
    "wait for an mbarrier": r"waitLoop:\s*mbarrier[^;]*;\s*@!complete bra\.uni waitLoop;",
}
_SWAPPED = r"(mma\.sync\S*\s*)(\{[^}]*\})(\s*,\s*)\{\s*([^,}]*),([^,}]*)(,[^}]*\})"
_CASES = (
    (80, "linear, bfloat16, 60"),
    (80, "experts, bfloat16, 60"),
    (80, "norm"),
    (90, "linear, bfloat16, 130"),
    (90, "attention, sliding, 1 x 64 causal"),
    (100, "linear, bfloat16, 130"),
    (100, "linear, native, 20"),
    (120, "linear, native, 20"),
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """The mistake of a kind at one of its places in a kernel."""

    architecture: int
    case: str
    kernel: str
    kind: str
    place: int

    def edit(self, kernel: str, ptx: str) -> str:
        """The kernel with the mistake; other kernels as they are."""
        if kernel != self.kernel:
            return ptx
        pattern = _SWAPPED if self.kind == "swapped operands" else REMOVED[self.kind]
        match = list(re.finditer(pattern, ptx))[self.place]
        text = ""
        if self.kind == "swapped operands":
            text = f"{match[1]}{match[2]}{match[3]}{{{match[5]}, {match[4]}{match[6]}"
        return ptx[: match.start()] + text + ptx[match.end() :]

    def judged(self) -> Verdict:
        """What the emulator says of the case with the mistake."""
        return judge(_case(self.case), self.architecture, self.edit)


def _case(name: str):
    return next(case for case in all_cases() if case.name == name)


def mutants(architecture: int, case: str, most: int = 6) -> Iterator[Mutant]:
    """The first places of every kind in every kernel of a case, which has to pass as it is."""
    texts: dict[str, str] = {}

    def keep(kernel: str, ptx: str) -> str:
        texts[kernel] = ptx
        return ptx

    verdict = judge(_case(case), architecture, keep)
    assert verdict.status == PASSED, verdict
    for kernel, ptx in texts.items():
        for kind, pattern in {**REMOVED, "swapped operands": _SWAPPED}.items():
            for place in range(min(most, len(re.findall(pattern, ptx)))):
                yield Mutant(architecture, case, kernel, kind, place)


def main() -> None:
    noticed = total = 0
    for architecture, case in _CASES:
        for mutant in mutants(architecture, case):
            verdict = mutant.judged()
            total += 1
            noticed += verdict.status != PASSED
            word = "unnoticed" if verdict.status == PASSED else verdict.details[0]
            print(architecture, case, mutant.kernel, mutant.kind, mutant.place, word, sep=" | ")
            sys.stdout.flush()
    print(f"{noticed} of {total} noticed")


if __name__ == "__main__":
    main()
