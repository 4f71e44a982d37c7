"""The proof that operations compute on a device what they should, before the device is trusted.

A wrong kernel gives plausible text. So every operation runs once at the tile sizes of real models
beside its reference in float64: on random inputs, with a NaN in one row, and on a GPU as a graph
replayed over poisoned outputs. It runs in child processes: a compiler's abort, a hang and an error
of the device, which would spoil this process too, end there.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hybrid.kernels.child import Child
from hybrid.kernels.proof_cases import ProofCase, proof_cases

WORKER = "hybrid.kernels.proof_worker"
_LIMIT_S = 180.0  # for one case, compilation included
_START_S = 120.0  # more for the first case of a process


@dataclass(frozen=True, slots=True)
class ProofOutcome:
    """What came of one case.

    `error` and `rms` are measured as `ProofCase` says, against `tolerance` and `rms_tolerance`;
    None where the call did not return. `ms` is the time of a call and `share` the bytes of its
    inputs a second as a share of the copy bandwidth; None on a CPU. `detail` says what went wrong.
    """

    case: str
    operation: str
    form: str
    passed: bool
    error: float | None
    tolerance: float
    rms: float | None
    rms_tolerance: float
    ms: float | None
    share: float | None
    detail: str


@dataclass(frozen=True, slots=True)
class Proof:
    """What is known of a device: `key` says of which, and with which versions of everything."""

    key: dict[str, str]
    outcomes: tuple[ProofOutcome, ...]

    @property
    def failures(self) -> tuple[ProofOutcome, ...]:
        """The cases that did not pass."""
        return tuple(outcome for outcome in self.outcomes if not outcome.passed)

    def to_json(self) -> str:
        """The text that `from_json` reads."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Proof":
        """Raises ValueError, KeyError or TypeError for what is no proof."""
        found = json.loads(text)
        return cls(found["key"], tuple(ProofOutcome(**part) for part in found["outcomes"]))


def prove(
    device: torch.device,
    key: dict[str, str],
    done: Callable[[ProofOutcome], None] = lambda outcome: None,
    start: Callable[[], Child] | None = None,
    cases: Sequence[ProofCase] | None = None,
    limit_s: float = _LIMIT_S,
) -> Proof:
    """Run the cases in child processes of `start`, telling `done` of each outcome.

    A child that ends takes its case with it; the next case gets a new one.
    """
    new_child = start or (lambda: Child(WORKER, [str(device)]))
    outcomes: list[ProofOutcome] = []
    waiting = [*(proof_cases(device) if cases is None else cases)]
    while waiting:
        with new_child() as child:
            allowance = _START_S
            while waiting:
                case = waiting.pop(0)
                answer = child.ask(case.name, limit_s + allowance)
                allowance = 0.0
                found = {"detail": child.how_it_ended()} if answer is None else json.loads(answer)
                outcomes.append(outcome_of(case, found))
                done(outcomes[-1])
                if answer is None or found["device_failed"]:
                    break
    return Proof(key, tuple(outcomes))


def outcome_of(case: ProofCase, found: dict[str, Any]) -> ProofOutcome:
    """Judge what a child found of a case."""
    error, rms = found.get("error"), found.get("rms")
    detail: str = found["detail"]
    is_near = False
    if error is not None and rms is not None:
        is_near = error <= case.largest and rms <= case.rms
    if not detail and not is_near:
        detail = f"off by {error:.2g}, {case.largest:.2g} allowed; RMS {rms:.2g}, {case.rms:.2g}"
    return ProofOutcome(
        case=case.name,
        operation=case.operation,
        form=case.form,
        passed=is_near and not detail,
        error=error,
        tolerance=case.largest,
        rms=rms,
        rms_tolerance=case.rms,
        ms=found.get("ms"),
        share=found.get("share"),
        detail=detail,
    )
