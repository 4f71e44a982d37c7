"""What a proof means for a model: kernels, references, or a refusal with names."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hybrid.engine import proofs
from hybrid.engine.operations import KERNELS, REFERENCES
from hybrid.engine.proofs import kept_proof, proof_key, prove_device, proved_operations
from hybrid.engine.random_weights import random_weights
from hybrid.engine.weights import EngineWeights
from hybrid.errors import CapabilityError
from hybrid.kernels.proof import Proof, ProofOutcome, outcome_of
from hybrid.kernels.proof_cases import ProofCase, proof_cases
from tests.engine.test_engine_kernels import geometry

CPU = torch.device("cpu")
PASSED = {"error": 0.0, "rms": 0.0, "detail": ""}
FAILED = {"detail": "exit status 1: Illegal address"}


def weights(*packed: str) -> EngineWeights:
    return random_weights(geometry(), CPU, torch.bfloat16, packed)


def proof_with(*failing: tuple[str, str]) -> Proof:
    """A proof in which all cases of these operations and forms have failed."""

    def outcome(case: ProofCase) -> ProofOutcome:
        return outcome_of(case, FAILED if (case.operation, case.form) in failing else PASSED)

    return Proof({}, tuple(map(outcome, proof_cases(CPU))))


def test_a_proved_device_runs_kernels() -> None:
    assert proved_operations(proof_with(), weights("experts"), "cuda:0") == KERNELS


@pytest.mark.parametrize("name", ["rms_norm", "route", "accept", "draw_keys", "condition"])
def test_small_operations_fall_back_to_their_references(name: str) -> None:
    operations = proved_operations(proof_with((name, "")), weights(), "cuda:0")
    assert getattr(operations, name) is getattr(REFERENCES, name)
    assert replace(operations, **{name: getattr(KERNELS, name)}) == KERNELS


@pytest.mark.parametrize(
    ("operation", "form", "packed"),
    [("linear", "plain", ()), ("experts", "packed", ("experts",)), ("head_sample", "", ())],
)
def test_what_has_no_fallback_is_refused_by_name(
    operation: str, form: str, packed: tuple[str, ...]
) -> None:
    with pytest.raises(CapabilityError, match="Illegal address") as caught:
        proved_operations(proof_with((operation, form)), weights(*packed), "cuda:0 (Card)")
    assert caught.value.operation == f"operation {operation}"
    assert caught.value.device == "cuda:0 (Card)"
    assert f"{operation}, " in caught.value.missing


def test_forms_that_a_model_does_not_have_are_not_asked_for() -> None:
    assert proved_operations(proof_with(("experts", "packed")), weights(), "cuda:0") == KERNELS


def test_what_was_not_proved_is_not_served() -> None:
    proof = proof_with()
    fewer = replace(proof, outcomes=tuple(o for o in proof.outcomes if o.operation != "head"))
    with pytest.raises(CapabilityError, match=r"head on cuda:0: it was not proved"):
        proved_operations(fewer, weights(), "cuda:0")


def test_a_proof_is_kept_for_as_long_as_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(proofs, "prove", lambda device, key, done: Proof(key, ()))
    assert kept_proof(CPU) is None
    proof = prove_device(CPU)
    assert kept_proof(CPU) == proof
    proofs.proof_file(proof_key(CPU)).write_text("{}")
    assert kept_proof(CPU) is None
    prove_device(CPU)
    monkeypatch.setattr(proofs, "source_hash", lambda: "changed")
    assert kept_proof(CPU) is None
