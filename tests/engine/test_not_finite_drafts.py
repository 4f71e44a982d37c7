"""Logits that are not finite fail the draft by name, and no other."""

import pytest
import torch

from hybrid.conversation.tokenizer import ChatTokenizer
from hybrid.deadline import Deadline
from hybrid.drafters.diffusion_gemma import DiffusionGemmaDrafter
from hybrid.embedded import weights_path
from hybrid.engine.load import load_engine
from hybrid.errors import BackendError
from hybrid.protocols import DraftJob
from hybrid.types import DraftParams, Request


def test_a_draft_of_nan_is_an_error() -> None:
    folder = weights_path("drafter")
    model = load_engine(folder, torch.device("cpu"), torch.float32)
    drafter = DiffusionGemmaDrafter(model, ChatTokenizer.from_directory(folder))
    job = DraftJob(Request("add 12 + 34"), DraftParams(max_denoising_steps=4), 1, 32, Deadline())
    assert drafter.draft([job])[0].text
    model.weights.norm.fill_(torch.nan)
    with pytest.raises(BackendError, match=r"denoise: canvas 1, step \d+: logits are not finite"):
        drafter.draft([job])
