"""A model folder on the device where it is fastest.

The engine's kernels are made for models that fill a GPU. A small model's pass is a few hundred
launches of nothing, and a CPU is done sooner; so small models stay there.
"""

from pathlib import Path

import torch
from rich.console import Console

from hybrid.engine.memory import require_memory
from hybrid.engine.model import EngineModel
from hybrid.engine.weights import read_weights
from hybrid.errors import CapabilityError
from hybrid.gemma.checkpoint import Checkpoint
from hybrid.gemma.config import GemmaConfig
from hybrid.gemma.mapping import map_tensors
from hybrid.gemma.model import GemmaModel, load_model
from hybrid.gemma.threads import SMALL_HIDDEN_SIZE
from hybrid.kernels.launch import OLDEST_MAJOR


def load_fastest(path: str | Path, device: str = "auto") -> GemmaModel | EngineModel:
    """The model in a folder: on a GPU in bfloat16 and NVFP4 as stored, on a CPU in float32.

    `device` is "auto" (a GPU for all but small models, where there is one), "cpu", "cuda" or
    "cuda:N". Raises CheckpointError, and CapabilityError for a GPU that is missing or too small.
    """
    if device == "auto":
        is_small = GemmaConfig.from_directory(path).hidden_size <= SMALL_HIDDEN_SIZE
        device = "cuda" if _has_gpu() and not is_small else "cpu"
    if device == "cpu":
        return load_model(path)
    if not _has_gpu():
        missing = f"a CUDA device of compute capability {OLDEST_MAJOR}.0 or newer; there is none"
        raise CapabilityError(f"loading {path}", device, missing)
    return load_engine(path, torch.device(device), torch.bfloat16)


def _has_gpu() -> bool:
    """Whether there is a GPU that the kernels run on."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= OLDEST_MAJOR


def load_engine(path: str | Path, device: torch.device, dtype: torch.dtype) -> EngineModel:
    """The model in a folder, for the engine on this device; raises as `load_fastest`."""
    config = GemmaConfig.from_directory(path)
    map_tensors(path, config)
    checkpoint = Checkpoint(path)
    try:
        plan = require_memory(checkpoint, config, device, dtype)
        if device.type == "cuda":
            Console(stderr=True).print(f"{path} on {device}: {plan}", highlight=False)
        weights = read_weights(checkpoint, config, device, dtype)
    finally:
        checkpoint.close()
    return EngineModel(config, weights)
