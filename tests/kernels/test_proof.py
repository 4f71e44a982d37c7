"""The proof of a device finds what is wrong with it, and survives finding it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hybrid.kernels.child import Child
from hybrid.kernels.proof import Proof, prove
from hybrid.kernels.proof_cases import proof_cases

HERE, CPU = Path(__file__).parent, torch.device("cpu")
PATH = [str(HERE), str(HERE.parents[1])]
KEY = {"device": "Card"}
CASES = {case.name: case for case in proof_cases(CPU)}
PACKED, PLAIN, OTHER = (
    CASES[name] for name in ("linear, packed, 1", "linear, plain, 32", "random_tokens, 2 x 256")
)


def starter(fault: str, interpret: bool = False) -> Callable[[], Child]:
    environment = {"OMP_NUM_THREADS": "1"} | ({"TRITON_INTERPRET": "1"} if interpret else {})
    return lambda: Child("proof_faults", [fault], PATH, environment)


def prove_with(fault: str, limit_s: float = 60.0, interpret: bool = False) -> Proof:
    cases = (PACKED, PLAIN, OTHER)
    return prove(CPU, KEY, start=starter(fault, interpret), cases=cases, limit_s=limit_s)


def test_references_are_proved_on_a_cpu() -> None:
    told: list[str] = []
    cases = [case for case in CASES.values() if "128" not in case.size and "512" not in case.size]
    proof = prove(CPU, KEY, lambda outcome: told.append(outcome.case), cases=cases)
    assert proof.failures == ()
    assert told == [case.name for case in cases]
    assert Proof.from_json(proof.to_json()) == proof


def test_kernels_are_proved_in_the_interpreter() -> None:
    assert prove_with("none", interpret=True).failures == ()


@pytest.mark.parametrize("interpret", [False, True])
def test_a_wrong_decode_is_found(interpret: bool) -> None:
    (failure,) = prove_with("wrong_decode", interpret=interpret).failures
    assert (failure.operation, failure.form) == ("linear", "packed")
    assert failure.error is not None and failure.error > 0.1
    assert "off by" in failure.detail


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("abort", "SIGABRT"),
        ("sticky", "CUDA error: an illegal memory access"),
        ("does_not_compile", "ValueError: no layout for this tile"),
    ],
)
def test_what_ends_a_call_fails_that_case_alone(fault: str, says: str) -> None:
    packed, plain, other = prove_with(fault).outcomes
    for outcome in (packed, plain):
        assert not outcome.passed
        assert says in outcome.detail
    assert other.passed


def test_a_hang_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid.kernels.proof._START_S", 15.0)
    packed, _, other = prove_with("hang", limit_s=1.0).outcomes
    assert "time limit" in packed.detail
    assert other.passed


def test_a_row_that_reaches_others_is_found() -> None:
    packed, plain, _ = prove_with("leaks").outcomes
    assert packed.passed  # it has one row
    assert plain.detail == "a NaN in one row of the input changes other rows"


def test_a_tolerance_is_held_to() -> None:
    strict = replace(PLAIN, largest=1e-9)
    (outcome,) = prove(CPU, KEY, cases=[strict]).outcomes
    assert not outcome.passed
    assert "off by" in outcome.detail and "1e-09 allowed" in outcome.detail


def test_a_child_does_not_import_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path)
    assert prove(CPU, KEY, cases=[OTHER]).failures == ()
