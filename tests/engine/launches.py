"""What the engine launches at the real model's size and the compile gate does not compile.

Run as a script where Triton compiles; prints it as a JSON list. The engine works on tensors without
memory, two layers of it, one of each kind: the others launch the same.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

import torch
from core_gpu import CONTEXT, geometry
from torch import Tensor

from hybrid.engine.banned_tokens import WIDTHS
from hybrid.engine.canvases import Canvases
from hybrid.engine.model import EngineModel
from hybrid.engine.random_weights import random_weights
from hybrid.kernels.gate.compilation import identity
from hybrid.kernels.gate.jobs import ARCHITECTURES, list_jobs
from hybrid.kernels.launch import recording
from hybrid.kernels.native import NATIVE_ARCHITECTURES
from hybrid.types import Activations

META = torch.device("meta")
ALL = "experts", "mlp", "attention"
FORMS: tuple[tuple[tuple[str, ...], Activations], ...] = (
    (("experts",), "float"),
    (ALL, "float"),
    (ALL, "nvfp4"),
)
ROWS = 1, 2, 4, 8
PASSES = 1, 2, 3, 7, 16, 37, 256, 700  # tokens
SCORED = 1, 3, 16, 37, 64, 100, 256


def main() -> None:
    """Every form of the weights on every architecture that has it."""
    found = []
    models = [(_model(*form), form[1]) for form in FORMS]
    for architecture in ARCHITECTURES:
        compiled = {identity(job.launch) for job in list_jobs("", [architecture])}
        for model, activations in models:
            if activations == "nvfp4" and architecture not in NATIVE_ARCHITECTURES:
                continue
            with recording(architecture) as launches:
                for work in _work(model):
                    assert launches, f"{work} launches nothing"
                    unknown = {
                        launch.kernel.__name__
                        for launch in launches
                        if identity(launch) not in compiled
                    }
                    found += [f"sm_{architecture}, {work}: {name}" for name in sorted(unknown)]
                    launches.clear()
    json.dump(found, sys.stdout)


class _NoGenerator:
    """In place of torch's, which has none for numbers without memory."""

    def __init__(self, device: torch.device) -> None:
        assert device == META

    def manual_seed(self, seed: int) -> None:
        """None, which operations take for the usual generator."""


def _model(packed: tuple[str, ...], activations: Activations) -> EngineModel:
    config = geometry()
    config = replace(config, layers=config.layers[4:6])
    with patch.object(torch, "Generator", _NoGenerator):
        return EngineModel(
            config, random_weights(config, META, torch.bfloat16, packed, activations)
        )


def _work(model: EngineModel) -> Iterator[str]:
    """Names what it has just done: steps of canvases, causal passes, scores."""
    length = model.config.canvas_length
    for rows in ROWS:
        cache = model.new_cache(rows, CONTEXT, length)
        canvases, numbers = Canvases(model, rows), _ids(rows)
        canvases.step(model.kv_buffers(cache), numbers)
        yield f"{rows} canvases"
        for width in WIDTHS:
            canvases.step(model.kv_buffers(cache), numbers, width)
            yield f"{rows} canvases with {width} banned tokens"
        for tokens in PASSES:
            for row in range(rows):
                cache.clear(row)
            model.encode(_ids(rows, tokens), [tokens] * rows, cache, range(rows))
            yield f"{rows} x {tokens} tokens"
    for tokens in SCORED:
        hidden = torch.empty(tokens, model.config.hidden_size, device=META, dtype=torch.bfloat16)
        model.score(hidden, _ids(tokens))
        model.logits(hidden)
        yield f"scores of {tokens}"


def _ids(*shape: int) -> Tensor:
    return torch.empty(shape, device=META, dtype=torch.int64)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
