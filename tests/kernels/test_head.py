"""The head: capped logits in float32."""

import pytest
import torch

from hybrid.kernels.head import head_torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_capped_in_float32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.randn(2, 3, 16, generator=generator) * 9).to(dtype)
    embedding = torch.randn(50, 16, generator=generator).to(dtype)
    raw = hidden.float() @ embedding.float().T
    logits = head_torch(hidden, embedding, 30.0)
    assert logits.dtype == torch.float32
    assert logits.abs().max() <= 30
    assert raw.abs().max() > 60
    torch.testing.assert_close(logits, (30 * (raw.double() / 30).tanh()).float())
    assert torch.equal(head_torch(hidden, embedding, None), raw)
