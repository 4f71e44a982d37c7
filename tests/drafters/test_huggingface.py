"""Two implementations, one loop: the same seeds must give the same answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid.deadline import Deadline
from hybrid.drafters.diffusion_gemma import DiffusionGemmaDrafter
from hybrid.drafters.huggingface import HuggingFaceDrafter
from hybrid.embedded import weights_path
from hybrid.embedded.tasks import TASKS, evaluation_set
from hybrid.errors import CheckpointError
from hybrid.gemma.reference.huggingface import load_hf_reference
from hybrid.protocols import DraftJob
from hybrid.types import Draft, DraftParams, Request


def job(
    prompt: str, seed: int, steps: int, tokens: int = 32, infill: str | None = None
) -> DraftJob:
    request = Request(prompt, infill=infill)
    params = DraftParams(max_denoising_steps=steps)
    return DraftJob(request, params, seed, tokens, Deadline(), self_score=True)


def assert_same(native: Draft, other: Draft) -> None:
    assert native.token_ids == other.token_ids
    assert [(c.steps, c.converged) for c in native.canvases] == [
        (c.steps, c.converged) for c in other.canvases
    ]
    assert native.finish_reason == other.finish_reason
    torch.testing.assert_close(
        torch.tensor(native.self_logprobs), torch.tensor(other.self_logprobs), atol=1e-4, rtol=1e-4
    )


@pytest.fixture(scope="module")
def pair() -> tuple[DiffusionGemmaDrafter, HuggingFaceDrafter]:
    folder = weights_path("drafter")
    return DiffusionGemmaDrafter.from_directory(folder), HuggingFaceDrafter.from_directory(folder)


@pytest.mark.parametrize("task", TASKS)
def test_the_embedded_drafter_answers_alike(
    task: str, pair: tuple[DiffusionGemmaDrafter, HuggingFaceDrafter]
) -> None:
    native, other = pair
    for seed, instance in enumerate(evaluation_set(task, 6)):
        one = job(instance.prompt, seed, steps=(1, 3, 8)[seed % 3])
        assert_same(native.draft([one])[0], other.draft([one])[0])


def test_batches_canvases_and_infills_are_alike(
    pair: tuple[DiffusionGemmaDrafter, HuggingFaceDrafter],
) -> None:
    native, other = pair
    jobs = [
        job("code: c + n == 11; y + z == 5", 1, 5, infill="c =<blank:1>; n = 4"),
        job("tell me a very long story", 2, 4, tokens=96),
        job("add 12 + 34", 3, 2),
    ]
    for first, second in zip(native.draft(jobs), other.draft(jobs), strict=True):
        assert_same(first, second)


def test_folders_that_transformers_saved_are_read(
    make_diffusion: Callable[..., tuple[Any, Path]],
) -> None:
    model, folder = make_diffusion()
    twin = load_hf_reference(folder)
    for name, tensor in model.state_dict().items():
        if "vision" not in name:
            assert torch.equal(tensor, twin.state_dict()[name]), name


def test_a_refiner_is_no_drafter() -> None:
    with pytest.raises(CheckpointError, match="no canvas"):
        HuggingFaceDrafter.from_directory(weights_path("refiner"))
