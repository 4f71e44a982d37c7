"""A model whose activations overflow is an error with stage and layer, not an answer of padding."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybrid.deadline import Deadline
from hybrid.drafters.diffusion_gemma import DiffusionGemmaDrafter
from hybrid.drafters.huggingface import HuggingFaceDrafter
from hybrid.embedded import weights_path
from hybrid.errors import BackendError
from hybrid.gemma.checkpoint.tensors import SINGLE
from hybrid.gemma.model.gemma import load_model
from hybrid.protocols import DraftJob
from hybrid.refiners.gemma import GemmaRefiner
from hybrid.refiners.huggingface import HuggingFaceRefiner
from hybrid.types import DraftParams, Request

Make = Callable[..., tuple[Any, Path]]
HUGE = 1e38


def overflowing(role: Any, where: Path, name: str) -> Path:
    """A model of the embedded pair with one number far too large."""
    folder = Path(shutil.copytree(weights_path(role), where / role))
    tensors = load_file(folder / SINGLE)
    tensors[name] = torch.full_like(tensors[name], HUGE)
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("name", "stage", "layer"),
    [
        ("model.decoder.layers.2.layer_scalar", "denoise", "layer 2"),
        ("model.encoder.language_model.layers.1.layer_scalar", "read", "layer 1"),
        ("model.decoder.self_conditioning.pre_norm.weight", "denoise", "input of layer 0"),
    ],
)
@pytest.mark.parametrize("backend", [DiffusionGemmaDrafter, HuggingFaceDrafter])
def test_a_drafters_overflow(
    tmp_path: Path, name: str, stage: str, layer: str, backend: type[DiffusionGemmaDrafter]
) -> None:
    if backend is HuggingFaceDrafter:  # which says only what layers give
        layer = layer.replace("input of layer 0", "layer 0")
    drafter = backend.from_directory(overflowing("drafter", tmp_path, name), "cpu")
    job = DraftJob(Request("list 5 metals"), DraftParams(), 0, 32, Deadline())
    with pytest.raises(BackendError, match=layer) as raised:
        drafter.draft([job])
    assert raised.value.stage == stage


@pytest.mark.parametrize("what", ["score", "write"])
@pytest.mark.parametrize("backend", [GemmaRefiner, HuggingFaceRefiner])
def test_a_refiners_overflow(tmp_path: Path, what: str, backend: type[GemmaRefiner]) -> None:
    folder = overflowing("refiner", tmp_path, "model.layers.4.layer_scalar")
    refiner = backend.from_directory(folder, "cpu")
    session = refiner.open(Request("list 5 metals"), 8)
    with pytest.raises(BackendError, match="layer 4") as raised:
        session.score([10, 11]) if what == "score" else session.write((), 4)
    assert raised.value.stage == "read"


def test_large_activations_are_no_overflow(make_diffusion: Make) -> None:
    """Their sum is infinite and no number of them is."""
    model = load_model(make_diffusion()[1])
    with torch.inference_mode():
        for layer in model.layers:
            object.__setattr__(layer.weights, "denoise_scalar", 1.0)
        cache = model.new_cache(1, 16)
        x = torch.full((1, 6, 32), 3e38)
        metadata = cache.metadata([0], [6], 6, causal=False)
        assert model._run(x, metadata, cache).isfinite().all()
