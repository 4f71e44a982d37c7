"""Activations that are no numbers any more: an error with the stage and the layer.

Without it a model whose activations overflow answers with padding, as if it had worked.
"""

from collections.abc import Iterable

from torch import Tensor

from hybrid.errors import BackendError


def is_finite(x: Tensor) -> bool:
    """Whether there is neither NaN nor infinity in it.

    The sum tells in nearly all cases, and takes a tenth of the time of looking at each number.
    """
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())


def overflow_error(causal: bool, outputs: Iterable[Tensor]) -> BackendError:
    """The error for a pass whose layers' inputs and outputs, in order, are `outputs`.

    The first of them is the input of the first layer.
    """
    stage = "read" if causal else "denoise"
    count, place = 0, ""
    for number, output in enumerate(outputs):
        count = number
        if not place and not is_finite(output):
            place = f"layer {number - 1}'s output" if number else "the input of layer 0"
    where = place or "the final hidden states"
    found = f"{where} holds NaN or infinity ({count} layers)"
    return BackendError(stage, f"{found}: the model's activations overflow")
