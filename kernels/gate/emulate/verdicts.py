"""What became of a case on an architecture: passed, or what is wrong, or not covered."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hybrid.kernels.gate.emulate.cases.attention import attention_cases
from hybrid.kernels.gate.emulate.cases.case import Case, poisoned
from hybrid.kernels.gate.emulate.cases.products import product_cases
from hybrid.kernels.gate.emulate.cases.rows import row_cases
from hybrid.kernels.gate.emulate.cases.vocabulary import vocabulary_cases
from hybrid.kernels.gate.emulate.faults import Fault, NotModelled
from hybrid.kernels.gate.emulate.launcher import Edit, Ran, emulated
from hybrid.kernels.launch import Launch

PASSED, WRONG, NOT_COVERED = "passed", "wrong", "not covered"
# Constants that say how large the model is, or how many parts of a row there are: other sizes are
# the same code over more or fewer turns.
_SIZES = frozenset({
    "N", "K", "H", "V", "E", "C", "EXPERTS", "BINS", "CHUNK", "TOP_K", "HEADS", "KEY_HEADS", "KEYS",
    "QUERIES", "TOKENS", "SLOTS", "WINDOW", "WIDTH", "POSITIONS", "PURPOSE", "SCALE", "EPS",
    "SOFTCAP", "BANNED_LOGIT", "TILES", "BLOCK_TILES", "SPLITS", "BLOCKS", "BLOCKS_PER_FACTOR",
    "PADDED", "SKIP_BELOW", "BLOCK_S", "BLOCK_H", "BLOCK_B", "J",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """`error` is the largest over the largest number; `details` are of everything but passing;
    `settings` are the kernels, as compiled, that ran to their end.
    """

    case: str
    architecture: int
    status: str
    error: float
    details: tuple[str, ...]
    settings: tuple[str, ...]
    instructions: int


def all_cases() -> list[Case]:
    """Every case, in the order of a step."""
    return [*attention_cases(), *product_cases(), *row_cases(), *vocabulary_cases()]


def settings_of(launch: Launch) -> str:
    """A kernel with its warps, stages and the constants that are not sizes."""
    constants = {
        p.name: launch.arguments[p.name]
        for p in launch.kernel.params
        if p.is_constexpr and p.name not in _SIZES
    }
    return _written(launch.kernel.__name__, constants, launch.num_warps, launch.num_stages)


def _written(kernel: str, constants: Mapping[str, Any], warps: int, stages: int) -> str:
    parts = [f"{name}={value}" for name, value in sorted(constants.items())]
    return " ".join([kernel, *parts, f"warps={warps}", f"stages={stages}"])


def judge(case: Case, architecture: int, edit: Edit | None = None) -> Verdict:
    """Run the case, compare, and say what there is to say; raises what the compiler raises."""
    torch.manual_seed(zlib.crc32(case.name.encode()))
    trial = case.prepare()
    exact = trial.reference()
    ran: list[Ran] = []
    try:
        with poisoned(), emulated(architecture, case.multiprocessors, edit) as ran:
            actual = trial.run()
    except NotModelled as missing:
        return _verdict(case, architecture, NOT_COVERED, ran, 0.0, f"not modelled: {missing}")
    except Fault as fault:
        return _verdict(case, architecture, WRONG, ran, 0.0, f"fault: {fault}")
    details, largest = [], 0.0
    for place, (a, e, near) in enumerate(zip(actual, exact, trial.tolerances, strict=True)):
        error, is_near = near.error(a, e)
        largest = max(largest, error)
        if not is_near:
            details.append(f"output {place} is wrong by {error:.2g}")
    details += [f"{one.launch.kernel.__name__}: {hazard}" for one in ran for hazard in one.hazards]
    status = WRONG if details else PASSED
    return _verdict(case, architecture, status, ran, largest, *details)


def _verdict(
    case: Case, architecture: int, status: str, ran: list[Ran], error: float, *details: str
) -> Verdict:
    return Verdict(
        case.name,
        architecture,
        status,
        error,
        details,
        tuple(settings_of(one.launch) for one in ran),
        sum(one.instructions for one in ran),
    )
