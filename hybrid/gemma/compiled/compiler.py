"""Compiling a small model's passes ahead of time, with AOTInductor and a C++ compiler.

Half a minute a pass, once; the passes are kept by `hybrid.artefacts` and found by `load_small`.
"""

import os
import shutil
import sys
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.export import Dim

from hybrid.errors import CapabilityError
from hybrid.gemma.compiled.flat_cache import PADDING, FlatCache
from hybrid.gemma.compiled.model import MAX_TOKENS, RENOISING, CompiledModel, statistics_program
from hybrid.gemma.compiled.programs import (
    MAX_ROWS,
    CausalPass,
    RenoisePass,
    StatisticsPass,
    kinds_of,
)
from hybrid.gemma.config import GemmaConfig
from hybrid.gemma.model.gemma import GemmaModel
from hybrid.gemma.model.weights import FEW_EXPERTS
from hybrid.gemma.threads import SMALL_HIDDEN_SIZE

_MOST = 1 << 24
# Whose weights are packed for oneDNN: four canvases take 4.5 instead of 5.0 ms (embedded drafter),
# but one token 1.04 instead of 0.70 ms (embedded refiner), and 16 tokens 0.78 instead of 0.69 ms.
_FROZEN = {statistics_program(MAX_ROWS)}


def require_small(config: GemmaConfig) -> None:
    """Raise CapabilityError for a model that would not gain, before its weights are read."""
    if config.hidden_size > SMALL_HIDDEN_SIZE:
        gain = f"only models with a hidden size of at most {SMALL_HIDDEN_SIZE} gain"
        raise CapabilityError("compiling", "cpu", f"{gain}; this one has {config.hidden_size}")
    if config.num_experts > FEW_EXPERTS:
        missing = f"layers of more than {FEW_EXPERTS} experts cannot be compiled"
        raise CapabilityError("compiling", "cpu", f"{missing}; these have {config.num_experts}")


def program_names(model: GemmaModel) -> list[str]:
    """The passes that are worth compiling of a model; raises CapabilityError if none can be."""
    require_small(model.config)
    if model.device.type != "cpu":
        raise CapabilityError("compiling", str(model.device), "only passes on a CPU gain")
    if model.weights.self_conditioning is None:
        return ["write", "encode"]
    return [statistics_program(1), statistics_program(MAX_ROWS), RENOISING, "read"]


def require_compiler() -> None:
    """Raise CapabilityError, with what to install, where there is no C++ compiler."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler.split()[0]) is None:
        hint = "xcode-select --install" if sys.platform == "darwin" else "apt-get install g++"
        missing = f"{compiler}, a C++ compiler: {hint}, or name another in CXX"
        raise CapabilityError("compiling", "this machine", missing)


def compile_program(model: GemmaModel, name: str) -> bytes:
    """The shared library of one of `program_names`; raises CapabilityError if that fails."""
    require_compiler()
    example = _Example.of(model, name)
    with torch.inference_mode():  # so that numbers kept as tensors are there before they are traced
        example.module(*example.copies())
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "program.pt2"
        scratch = patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder)
        with torch.no_grad(), scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tools among themselves
            try:
                exported = example.exported(example.module)
                if is_frozen := name in _FROZEN:
                    exported = example.exported(_with_buffers(exported))
                torch._inductor.aoti_compile_and_package(
                    exported,
                    package_path=str(package),
                    inductor_configs={"cpp.threads": 1, "freezing": is_frozen},
                )
            except Exception as error:  # of the tracer, the code generator or the compiler
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise CapabilityError("compiling", "this machine", reason) from error
        with zipfile.ZipFile(package) as archive:
            (library,) = (one for one in archive.namelist() if one.endswith(".so"))
            return archive.read(library)


def _with_buffers(exported: torch.export.ExportedProgram) -> nn.Module:
    """The traced pass with its weights as buffers, which alone can be packed while compiling."""
    module = exported.module()
    for node in module.graph.find_nodes(op="get_attr"):
        weight = getattr(module, node.target)
        delattr(module, node.target)
        module.register_buffer(node.target, weight)
    return module


@dataclass(frozen=True, slots=True)
class _Example:
    """A pass with inputs to trace it with, and which of their dimensions are open.

    No two open dimensions are the same size, or they would be taken for one.
    """

    module: nn.Module
    inputs: tuple[Any, ...]
    shapes: dict[str, Any]

    @classmethod
    def of(cls, model: GemmaModel, name: str) -> "_Example":
        if name == RENOISING:
            return cls._renoising(model)
        if name in (statistics_program(1), statistics_program(MAX_ROWS)):
            return cls._statistics(model, 1 if name == statistics_program(1) else 3)
        return cls._causal(model, name)

    @classmethod
    def _renoising(cls, model: GemmaModel) -> "_Example":
        tokens, number = model.config.canvas_length, torch.ones(1, dtype=torch.int32)
        p = torch.rand(1, tokens, model.config.vocab_size)
        seeds = torch.ones(1, 2, dtype=torch.int32)
        inputs = p, torch.ones(1, tokens, dtype=torch.bool), seeds, number, number.clone()
        names = "p", "accepted", "seeds", "canvas", "step"
        return cls(RenoisePass(model), inputs, dict.fromkeys(names))

    @classmethod
    def _statistics(cls, model: GemmaModel, rows: int) -> "_Example":
        config = model.config
        tokens = config.canvas_length
        row = {0: Dim("rows", min=2, max=MAX_ROWS)} if rows > 1 else {}
        own = {
            "canvas_ids": torch.zeros(rows, tokens, dtype=torch.int64),
            "soft_embedding": torch.randn(rows, tokens, config.hidden_size),
            "temperature": torch.ones(rows),
            "bound": torch.ones(rows),
            "fixed_ids": torch.zeros(rows, tokens, dtype=torch.int64),
        }
        place, shapes = _place(model, rows, tokens, row, {})
        shapes = {**dict.fromkeys(own, row), **shapes}
        return cls(StatisticsPass(model), (*own.values(), *place.values()), shapes)

    @classmethod
    def _causal(cls, model: GemmaModel, name: str) -> "_Example":
        tokens = 1 if name == "write" else 5
        token = Dim("tokens", min=2, max=MAX_TOKENS) if tokens > 1 else None
        place, shapes = _place(model, 1, tokens, {}, {1: token} if token else {})
        kinds = kinds_of(model)
        own = {
            "own_masks": [torch.zeros(tokens, tokens) for _ in kinds],
            "written": [torch.arange(tokens) for _ in kinds],
        }
        x = torch.randn(1, tokens, model.config.hidden_size)
        rotations, slots, masks, keys, values = place.values()
        shapes = {
            "x": {1: token} if token else {},
            **{part: shapes[part] for part in ("rotations", "slots", "masks")},
            "own_masks": [{0: token, 1: token} if token else {} for _ in kinds],
            "written": [{0: token} if token else {} for _ in kinds],
            **{part: shapes[part] for part in ("keys", "values")},
        }
        inputs = x, rotations, slots, masks, *own.values(), keys, values
        return cls(CausalPass(model, name != "read"), inputs, shapes)

    def exported(self, module: nn.Module) -> torch.export.ExportedProgram:
        """A module that takes these inputs, traced."""
        return torch.export.export(module, self.inputs, dynamic_shapes=self.shapes, strict=False)

    def copies(self) -> list[Any]:
        """The inputs, to run the pass once without changing them."""

        def copy(value: Any) -> Any:
            return value.clone() if isinstance(value, Tensor) else [copy(one) for one in value]

        return [copy(value) for value in self.inputs]


def _place(
    model: GemmaModel, rows: int, tokens: int, row: dict[int, Any], token: dict[int, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where any pass stands, its cache included, and the open dimensions of that.

    ``row`` and ``token`` are the open ones of rows and tokens, empty if they are not.
    """
    config = model.config
    kinds, ropes = kinds_of(model), sorted({layer.rope for layer in model.layers})
    seen = {kind: PADDING * (2 + index) for index, kind in enumerate(kinds)}
    by_token = tokens if token else 1
    cache = CompiledModel(config, model.weights, {}).new_cache(rows, 2 * PADDING)
    assert isinstance(cache, FlatCache)
    place = {
        "rotations": [torch.ones(rows, tokens, 1, rope[0]) for rope in ropes for _ in range(2)],
        "slots": [torch.zeros(rows, seen[kind], dtype=torch.int64) for kind in kinds],
        "masks": [torch.zeros(rows, by_token, seen[kind]) for kind in kinds],
        "keys": cache.flat_keys,
        "values": cache.flat_values,
    }
    some = {kind: Dim(f"seen_{kind}", min=2, max=_MOST) for kind in kinds}
    slots = {kind: Dim(f"slots_{kind}", min=2, max=_MOST) for kind in kinds}
    held = [{0: slots[layer.kind]} for layer in config.layers]
    shapes = {
        "rotations": [{**row, **token}] * len(place["rotations"]),
        "slots": [{**row, 1: some[kind]} for kind in kinds],
        "masks": [{**row, **token, 2: some[kind]} for kind in kinds],
        "keys": held,
        "values": held,
    }
    return place, shapes
