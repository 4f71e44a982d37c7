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
from hybrid.gemma.cache import Reading
from hybrid.gemma.compiled import MOST_TOKENS, CompiledModel
from hybrid.gemma.config import GemmaConfig
from hybrid.gemma.flat_cache import PADDING, FlatCache
from hybrid.gemma.model import GemmaModel
from hybrid.gemma.threads import SMALL_HIDDEN_SIZE
from hybrid.gemma.traced import MOST_ROWS, Causal, Denoising, kinds_of
from hybrid.gemma.weights import FEW_EXPERTS

_MOST = 1 << 24


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
    return ["denoise_row", "denoise_rows", "read"]


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
                exported = torch.export.export(
                    example.module, example.inputs, dynamic_shapes=example.shapes, strict=False
                )
                torch._inductor.aoti_compile_and_package(
                    exported, package_path=str(package), inductor_configs={"cpp.threads": 1}
                )
            except Exception as error:  # of the tracer, the code generator or the compiler
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise CapabilityError("compiling", "this machine", reason) from error
        with zipfile.ZipFile(package) as archive:
            (library,) = (one for one in archive.namelist() if one.endswith(".so"))
            return archive.read(library)


@dataclass(frozen=True, slots=True)
class _Example:
    """A pass with inputs to trace it with, and which of their dimensions are open."""

    module: nn.Module
    inputs: tuple[Any, ...]
    shapes: dict[str, Any]

    @classmethod
    def of(cls, model: GemmaModel, name: str) -> "_Example":
        """No two open dimensions are the same size, or they would be taken for one."""
        config, causal = model.config, not name.startswith("denoise")
        rows = 3 if name == "denoise_rows" else 1
        tokens = 1 if name == "write" else 5 if causal else config.canvas_length
        cache = CompiledModel(config, model.weights, {}).new_cache(rows, 2 * PADDING)
        assert isinstance(cache, FlatCache)
        reading = Reading((*range(rows),), (0,) * rows, (tokens,) * rows, tokens, causal)
        kinds, ropes = kinds_of(model), sorted({layer.rope for layer in model.layers})
        seen = {kind: PADDING * (2 + index) for index, kind in enumerate(kinds)}
        by_token = {kind: tokens if causal and kind == "sliding" else 1 for kind in kinds}
        place = {
            "turns": [torch.ones(rows, tokens, 1, rope[0]) for rope in ropes for _ in range(2)],
            "slots": [torch.zeros(rows, seen[kind], dtype=torch.int64) for kind in kinds],
            "masks": [torch.zeros(rows, by_token[kind], seen[kind]) for kind in kinds],
        }
        if causal:
            place["written"] = [cache.own(reading, kind)[0] for kind in kinds]
        place |= {"keys": cache.flat_keys, "values": cache.flat_values}

        row = {0: Dim("rows", min=2, max=MOST_ROWS)} if rows > 1 else {}
        token = {1: Dim("tokens", min=2, max=MOST_TOKENS)} if causal and tokens > 1 else {}
        some = {kind: Dim(f"seen_{kind}", min=2, max=_MOST) for kind in kinds}
        slots = {kind: Dim(f"slots_{kind}", min=2, max=_MOST) for kind in kinds}
        held = [{0: slots[layer.kind]} for layer in config.layers]
        shapes: dict[str, Any] = {
            "turns": [{**row, **token}] * len(place["turns"]),
            "slots": [{**row, 1: some[kind]} for kind in kinds],
            "masks": [
                {**row, **(token if by_token[kind] > 1 else {}), 2: some[kind]} for kind in kinds
            ],
        }
        if causal:
            shapes["written"] = [{0: token[1]} if token else {}] * len(kinds)
            x = torch.randn(rows, tokens, config.hidden_size)
            shapes = {"x": token, **shapes, "keys": held, "values": held}
            return cls(Causal(model, name != "read"), (x, *place.values()), shapes)
        shapes = {"canvas_ids": row, "soft_embedding": row, **shapes, "keys": held, "values": held}
        ids = torch.zeros(rows, tokens, dtype=torch.int64)
        soft = torch.randn(rows, tokens, config.hidden_size)
        return cls(Denoising(model), (ids, soft, *place.values()), shapes)

    def copies(self) -> list[Any]:
        """The inputs, to run the pass once without changing them."""

        def copy(value: Any) -> Any:
            return value.clone() if isinstance(value, Tensor) else [copy(one) for one in value]

        return [copy(value) for value in self.inputs]
