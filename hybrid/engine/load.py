"""A model folder on the device where it is fastest.

The engine's kernels are made for models that fill a GPU. A small model's pass is a few hundred
launches of nothing, and a CPU is done sooner; so small models stay there.
"""

from pathlib import Path

import torch
from rich.console import Console

from hybrid.engine.compile_ahead import compile_ahead
from hybrid.engine.kv_cache_pool import outstanding_bytes
from hybrid.engine.memory import require_host_memory, require_memory
from hybrid.engine.model import EngineModel
from hybrid.engine.pair_memory import PlannedModel, require_pair
from hybrid.engine.proofs import kept_proof, prove_device, proved_operations
from hybrid.engine.reading import read_weights
from hybrid.errors import CapabilityError
from hybrid.gemma.checkpoint.mapping import map_tensors
from hybrid.gemma.checkpoint.nvfp4 import read_convention
from hybrid.gemma.checkpoint.tensors import Checkpoint
from hybrid.gemma.compiled.model import load_small
from hybrid.gemma.config import GemmaConfig
from hybrid.gemma.model.gemma import GemmaModel, load_model
from hybrid.gemma.threads import SMALL_HIDDEN_SIZE
from hybrid.kernels.launch import OLDEST_MAJOR, architecture
from hybrid.kernels.native import NATIVE_ARCHITECTURES
from hybrid.kernels.proof import Proof
from hybrid.types import Activations

NEEDS_BLACKWELL = "activations: nvfp4 needs a Blackwell GPU, of compute capability " + ", ".join(
    f"{number / 10}" for number in NATIVE_ARCHITECTURES
)


def load_fastest(
    path: str | Path, device: str = "auto", activations: Activations = "float"
) -> GemmaModel | EngineModel:
    """The model in a folder: on a GPU in bfloat16 and NVFP4 as stored, on a CPU in float32.

    `device` is "auto" (a GPU for all but small models, where there is one), "cpu", "cuda" or
    "cuda:N"; `activations` as in `load_engine`. Raises CheckpointError, and CapabilityError for a
    device that is missing, has too little memory, or cannot multiply as asked.
    """
    config = GemmaConfig.from_directory(path)
    is_small = config.hidden_size <= SMALL_HIDDEN_SIZE
    device = chosen_device(config, device)
    if device == "cpu":
        if activations == "nvfp4":
            raise CapabilityError(f"loading {path}", device, NEEDS_BLACKWELL)
        return load_small(path) if is_small else _load_decoded(path, config)
    if not _has_gpu():
        missing = f"a CUDA device of compute capability {OLDEST_MAJOR}.0 or newer; there is none"
        raise CapabilityError(f"loading {path}", device, missing)
    return load_engine(path, torch.device(device), torch.bfloat16, activations)


def chosen_device(config: GemmaConfig, device: str) -> str:
    """What "auto" means for a model: "cuda" where there is a GPU, for all but small models."""
    if device != "auto":
        return device
    is_small = config.hidden_size <= SMALL_HIDDEN_SIZE
    return "cuda" if _has_gpu() and not is_small else "cpu"


def require_pair_memory(
    drafter: str | Path, drafter_device: str, refiner: str | Path, refiner_device: str
) -> None:
    """CapabilityError if both folders' models go to one GPU that does not hold them together."""
    devices = [
        chosen_device(GemmaConfig.from_directory(path), device)
        for path, device in ((drafter, drafter_device), (refiner, refiner_device))
    ]
    found = [torch.device("cuda", 0) if d == "cuda" else torch.device(d) for d in devices]
    if found[0] == found[1] and found[0].type == "cuda" and _has_gpu():
        models = PlannedModel.from_directory(drafter), PlannedModel.from_directory(refiner)
        require_pair(*models, found[0])


def _load_decoded(path: str | Path, config: GemmaConfig) -> GemmaModel:
    """A large model on a CPU, if there is memory for it."""
    checkpoint = Checkpoint(path)
    try:
        needed = require_host_memory(checkpoint, config)
    finally:
        checkpoint.close()
    _print(f"{path} on cpu: {needed / 1e9:.2f} GB for weights in float32")
    return load_model(path)


def _print(plan: str) -> None:
    Console(stderr=True).print(plan, highlight=False, markup=False, soft_wrap=True)


def _require_native(path: Path, device: torch.device) -> None:
    """CapabilityError unless the weights are NVFP4 and the device multiplies four bits by four."""
    if device.type == "cuda" and architecture(device) not in NATIVE_ARCHITECTURES:
        name = f"{device} ({torch.cuda.get_device_name(device)})"
        raise CapabilityError(f"loading {path}", name, NEEDS_BLACKWELL)
    if read_convention(path) == "plain":
        missing = "activations: nvfp4 is for weights that are stored so, and these are not NVFP4"
        raise CapabilityError(f"loading {path}", str(device), missing)


def _has_gpu() -> bool:
    """Whether there is a GPU that the kernels run on."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= OLDEST_MAJOR


def load_engine(
    path: str | Path,
    device: torch.device,
    dtype: torch.dtype,
    activations: Activations = "float",
) -> EngineModel:
    """The model in a folder, for the engine on this device; raises as `load_fastest`.

    With `activations` "nvfp4", NVFP4 weights of experts and dense layers and of attention's output
    multiply activations that are rounded to NVFP4 too; a CPU computes the same by references.
    """
    config = GemmaConfig.from_directory(path)
    if activations == "nvfp4":
        _require_native(Path(path), device)
    map_tensors(path, config)
    checkpoint = Checkpoint(path)
    try:
        plan = require_memory(checkpoint, config, device, dtype, outstanding_bytes(device))
        if device.type == "cuda":
            _print(f"{path} on {device}: {plan}")
        weights = read_weights(checkpoint, config, device, dtype, activations)
    except torch.OutOfMemoryError as error:  # others have taken what was free
        missing = f"needs {plan}; {error}"
        raise CapabilityError(f"loading {path}", str(device), missing) from None
    finally:
        checkpoint.close()
    if device.type != "cuda":
        return EngineModel(config, weights)
    name = f"{device} ({torch.cuda.get_device_name(device)})"
    operations = proved_operations(_proof(device), weights, name)
    model = EngineModel(config, weights, operations)
    compile_ahead(model)
    return model


def _proof(device: torch.device) -> Proof:
    """The kept proof of the device, or a new one."""
    if (kept := kept_proof(device)) is not None:
        return kept
    _print(f"proving the kernels on {device}, once for this GPU and versions: a minute or two")
    return prove_device(device)
