"""Which experts tokens choose, in the ways that plans of work go wrong with."""

import torch
from torch import Tensor


def choices(kind: str, tokens: int, num_experts: int, top_k: int) -> Tensor:
    """int32 [tokens, top_k]: `spread` over all experts, all on `one`, or on the last `few`."""
    generator = torch.Generator().manual_seed(tokens)
    if kind == "spread":
        chosen = torch.rand(tokens, num_experts, generator=generator).topk(top_k).indices
    elif kind == "one":
        chosen = torch.full((tokens, top_k), num_experts - 1)
    else:
        chosen = torch.rand(tokens, 2, generator=generator).topk(top_k).indices + num_experts - 2
    return chosen.int()
