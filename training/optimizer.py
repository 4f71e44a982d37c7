"""Muon for weight matrices, Adam for everything else, in one optimizer.

Muon replaces a momentum matrix by the nearest orthogonal one, found by a quintic Newton-Schulz
iteration (Jordan et al. 2024); matrices of one shape are iterated in one batch.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, iterations: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly; [..., N, K] -> [..., N, K]."""
    a, b, c = COEFFICIENTS
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


class MuonAdam(torch.optim.Optimizer):
    """`named` parameters: matrices to Muon, embeddings, routers and vectors to Adam."""

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], muon_rate: float, adam_rate: float
    ) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in named:
            is_matrix = parameter.ndim >= 2 and not any(w in name for w in ("embed", "router"))
            (matrices if is_matrix else others).append(parameter)
        groups = [
            {"params": matrices, "lr": muon_rate, "peak": muon_rate, "muon": True},
            {"params": others, "lr": adam_rate, "peak": adam_rate, "muon": False},
        ]
        super().__init__(groups, {})
        self.step_count = 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.step_count += 1
        for group in self.param_groups:
            (self._muon if group["muon"] else self._adam)(group["params"], group["lr"])

    def _muon(self, parameters: list[nn.Parameter], rate: float) -> None:
        updates: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for p in parameters:
            if p.grad is not None:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 0.05)
                update = torch.lerp(p.grad, momentum, 0.95)
                updates[p.shape[-2], p.shape[-1]].append((p, update.reshape(-1, *p.shape[-2:])))
        for (rows, columns), group in updates.items():
            stacked = orthogonalize(torch.cat([u for _, u in group]))
            stacked *= max(1.0, rows / columns) ** 0.5
            parts = torch.split(stacked, [len(u) for _, u in group])
            for (p, _), part in zip(group, parts, strict=True):
                p.mul_(1 - 0.01 * rate).add_(part.view_as(p), alpha=-rate)

    def _adam(self, parameters: list[nn.Parameter], rate: float) -> None:
        for p in parameters:
            if p.grad is not None:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                square = self.state[p].setdefault("square", torch.zeros_like(p))
                mean.lerp_(p.grad, 0.1)
                square.lerp_(p.grad.square(), 0.02)
                scale = (square / (1 - 0.98**self.step_count)).sqrt() + 1e-8
                p.addcdiv_(mean / (1 - 0.9**self.step_count), scale, value=-rate)
