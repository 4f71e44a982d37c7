"""The denoising loop: a batch of canvases, each at its own step, settings and random numbers.

One call of `step` runs one pass for all given rows.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from hybrid.drafters.row import Row
from hybrid.drafters.sampling import Sampling


class Denoiser(Protocol):
    """Moves the canvases of one batch on; a row learns of a step at once or one step later."""

    def begin(self, row: Row) -> None:
        """The row begins a canvas, on the tokens in its `canvas_ids`."""
        ...

    def step(self, rows: Sequence[Row]) -> list[Row]:
        """Ask for a step of each row; the rows that have learned of one since the last time."""
        ...

    def settle(self, rows: Sequence[Row]) -> list[Row]:
        """Wait until these rows know of all their steps; those of them that did not."""
        ...

    def change(self, row: Row) -> None:
        """The row's canvas has been changed by votes; it knew of all its steps."""
        ...


class HostDenoiser:
    """A denoiser that computes a step when it is asked for."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling

    def begin(self, row: Row) -> None:
        """See `Denoiser.begin`."""

    def step(self, rows: Sequence[Row]) -> list[Row]:
        """See `Denoiser.step`."""
        step(self._sampling, rows)
        return list(rows)

    def settle(self, rows: Sequence[Row]) -> list[Row]:
        """See `Denoiser.settle`."""
        return []

    def change(self, row: Row) -> None:
        """See `Denoiser.change`."""


@torch.inference_mode()
def step(sampling: Sampling, rows: Sequence[Row]) -> None:
    """One denoising pass over the canvases of all `rows`; each row takes its own step with it."""
    judged = sampling.judge(rows)
    parts = zip(
        rows, judged.best_ids, judged.entropy, judged.accepted, judged.mean_entropy.tolist(),
        strict=True,
    )  # fmt: skip
    for row, best_ids, entropy, accepted, mean_entropy in parts:
        row.take_step(best_ids, entropy, accepted, mean_entropy)
    going = [index for index, row in enumerate(rows) if row.goes_on]
    if not going:
        return
    p, accepted = judged.p, judged.accepted
    if len(going) < len(rows):
        rows, p, accepted = [rows[index] for index in going], p[going], accepted[going]
    for row, *following in zip(rows, *sampling.go_on(rows, p, accepted), strict=True):
        row.go_on(*following)
