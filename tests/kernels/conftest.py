"""Kernels on the CPU, in Triton's corrected interpreter, over memory that holds nothing good."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid.kernels.launch import interpreted as interpret
from tests.interpreter import correct

if "UNCORRECTED" not in os.environ:  # a test asks whether Triton still needs it
    correct()


@pytest.fixture
def interpreted() -> Iterator[None]:
    """Operations run their kernels, and what they leave unwritten is NaN or a huge number."""
    if torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU; marked gpu, tests compile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", _poisoned(torch.empty))
        patch.setattr(torch, "empty_like", _poisoned(torch.empty_like))
        with interpret():
            yield


def _poisoned(make: Any) -> Any:
    def poisoned(*arguments: Any, **named: Any) -> Tensor:
        tensor: Tensor = make(*arguments, **named)
        if tensor.device.type == "cpu" and tensor.numel():
            tensor.view(torch.uint8).fill_(0xFF)  # NaN in every float format, -1 in integers
        return tensor

    return poisoned
