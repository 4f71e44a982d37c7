"""Proofs of devices, kept in the user's cache, and what follows from them for a model.

No operation is served on a GPU where it was not proved. A proof holds for one GPU model, driver,
versions of the toolchain and source of the kernels; whatever changes, it is made again.
"""

import json
import os
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from hybrid.engine.kernel_hashes import source_hash
from hybrid.engine.operations import KERNELS, REPLACEABLE, Operations
from hybrid.engine.weights import EngineWeights, Matrix
from hybrid.errors import CapabilityError
from hybrid.kernels.nvfp4 import PackedMatrix
from hybrid.kernels.proof import Proof, ProofOutcome, prove

_DRIVER = Path("/proc/driver/nvidia/version")
Done = Callable[[ProofOutcome], None]


def proof_key(device: torch.device) -> dict[str, str]:
    """Everything that a proof of this device depends on."""
    key = {"device": "cpu", "capability": "", "driver": ""}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        key = {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "driver": _driver(),
        }
    versions = {name: _version(name) for name in ("torch", "triton")}
    return {**key, **versions, "ptxas": _ptxas(), "kernels": source_hash()}


def proof_file(key: dict[str, str]) -> Path:
    """Where the proof with this key is kept."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return root / "hybrid" / "proofs" / f"{digest}.json"


def kept_proof(device: torch.device) -> Proof | None:
    """The proof of this device if it was made before."""
    key = proof_key(device)
    try:
        proof = Proof.from_json(proof_file(key).read_text())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return proof if proof.key == key else None


def prove_device(device: torch.device, done: Done = lambda outcome: None) -> Proof:
    """Prove the device now, and keep the proof where the cache can be written."""
    proof = prove(device, proof_key(device), done)
    file = proof_file(proof.key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(proof.to_json())
        part.replace(file)
    except OSError:  # a read-only home: it is proved again the next time
        pass
    return proof


def proved_operations(proof: Proof, weights: EngineWeights, device: str) -> Operations:
    """The operations that this model may use; CapabilityError where one is wrong for good."""
    required = required_operations(weights)
    replaced = set()
    for operation, form in sorted(required):
        outcomes = [o for o in proof.outcomes if o.operation == operation and o.form == form]
        failed = next((outcome for outcome in outcomes if not outcome.passed), None)
        if outcomes and failed is None:
            continue
        if operation in REPLACEABLE:
            replaced.add(operation)
            continue
        why = f"{failed.case}: {failed.detail}" if failed else "it was not proved"
        missing = f"{why}; hybrid prove shows all, hybrid doctor --report FILE writes it to a file"
        raise CapabilityError(f"operation {operation}", device, missing)
    return KERNELS.with_references(replaced)


def required_operations(weights: EngineWeights) -> set[tuple[str, str]]:
    """Operations and the forms of weights that they get, of one model."""
    required = {("rms_norm", ""), ("attention_residual", ""), ("feed_forward_residual", "")}
    required |= {("cached_attention", ""), ("head", ""), ("head_scores", "")}
    for layer in weights.layers:
        attention, feed_forward = layer.attention, layer.feed_forward
        required |= {
            ("linear_heads", form_of(attention.query_key_value)),
            ("linear", form_of(attention.output)),
            ("linear_gated", form_of(feed_forward.gate_up)),
            ("linear", form_of(feed_forward.down)),
        }
        if feed_forward.experts is not None:
            required |= {("route", "")}
            required |= {("experts", form_of(feed_forward.experts.gate_up))}
            required |= {("experts", form_of(feed_forward.experts.down))}
    if (conditioning := weights.self_conditioning) is not None:
        drafting = "condition", "draw_keys", "random_tokens", "accept", "head_sample", "soft_embed"
        required |= {(name, "") for name in drafting}
        required |= {
            ("linear_gated", form_of(conditioning.gate_up)),
            ("linear", form_of(conditioning.down)),
        }
    return required


def form_of(matrix: Matrix) -> str:
    """How a proof names the form of a matrix."""
    if isinstance(matrix, torch.Tensor):
        return "plain"
    return "packed" if isinstance(matrix, PackedMatrix) else "native"


def _driver() -> str:
    try:
        return _DRIVER.read_text().splitlines()[0].split("Module")[-1].split()[0]
    except (OSError, IndexError):
        return "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _ptxas() -> str:
    """The versions of the assemblers that Triton uses, the one for Blackwell second."""
    try:
        from triton import knobs

        tools = knobs.nvidia.ptxas, getattr(knobs.nvidia, "ptxas_blackwell", None)
        return ", ".join(str(tool.version) for tool in tools if tool is not None)
    except Exception as error:  # no triton, or no assembler that runs
        return f"unknown: {type(error).__name__}"
