"""A checkpoint in the engine's layout: the files' numbers, in as little memory as they need."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any
from weakref import finalize

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybrid.engine import reading
from hybrid.engine.memory import weight_bytes
from hybrid.engine.reading import read_weights
from hybrid.engine.weights import EngineWeights
from hybrid.gemma.checkpoint.mapping import map_tensors
from hybrid.gemma.checkpoint.tensors import Checkpoint
from hybrid.gemma.config import GemmaConfig
from hybrid.kernels.native import NativeMatrix, dense_native
from hybrid.kernels.nvfp4 import PackedMatrix, dense
from hybrid.types import Activations
from tests.gemma import published
from tests.gemma.nvfp4_folders import SINGLE, tensors_of, write_nvfp4
from tests.gemma.published import Spelling

Make = Callable[..., tuple[Any, Path]]
CPU = torch.device("cpu")
CONVENTIONS = ("plain", "modelopt", "compressed-tensors")


def read(
    folder: Path, dtype: torch.dtype = torch.float32, activations: Activations = "float"
) -> EngineWeights:
    checkpoint = Checkpoint(folder)
    try:
        return read_weights(checkpoint, GemmaConfig.from_directory(folder), CPU, dtype, activations)
    finally:
        checkpoint.close()


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested dataclasses and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from tensors(item)


def numbers(value: Any) -> Iterator[Tensor]:
    """Every matrix, decoded, and every other tensor, in order."""
    if isinstance(value, PackedMatrix | NativeMatrix):
        if isinstance(value, PackedMatrix):
            decoded = dense(value, torch.float32)
        else:
            decoded = dense_native(value, torch.float32)
        yield decoded[0] if len(decoded) == 1 else decoded
    elif is_dataclass(value):
        for field in fields(value):
            yield from numbers(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, Tensor):
        yield value


def size(weights: EngineWeights) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(weights))


@pytest.fixture(params=CONVENTIONS)
def folders(make_diffusion: Make, tmp_path: Path, request: pytest.FixtureRequest) -> list[Path]:
    """A folder in one of the spellings, and one in float32 with the same numbers."""
    saved = make_diffusion()[1]
    folder, plain = (Path(shutil.copytree(saved, tmp_path / n)) for n in ("model", "plain"))
    if request.param != "plain":
        save_file(write_nvfp4(folder, request.param), plain / "model.safetensors")
    return [folder, plain]


def test_packed_matrices_are_the_numbers_of_the_file(folders: list[Path]) -> None:
    """To the last bit but one: a reciprocal is rounded once where a checkpoint divides."""
    for found, expected in zip(*(numbers(read(folder)) for folder in folders), strict=True):
        torch.testing.assert_close(found, expected, rtol=2**-22, atol=0)


def test_native_matrices_are_the_same_numbers_in_as_many_bytes(folders: list[Path]) -> None:
    packed, native = read(folders[0]), read(folders[0], activations="nvfp4")
    for found, expected in zip(numbers(native), numbers(packed), strict=True):
        assert torch.equal(found, expected)
    assert size(native) == size(packed)
    for layer, other in zip(native.layers, packed.layers, strict=True):
        assert type(layer.attention.query_key_value) is type(other.attention.query_key_value)
        pairs: list[tuple[Any, ...]] = [(layer.attention.output, other.attention.output)]
        for name in ("gate_up", "down"):
            pairs.append(tuple(getattr(w.feed_forward, name) for w in (layer, other)))
            pairs.append(tuple(getattr(w.feed_forward.experts, name) for w in (layer, other)))
        for matrix, before in pairs:
            assert isinstance(matrix, NativeMatrix) == isinstance(before, PackedMatrix)


def test_gate_and_up_rows_alternate(make_diffusion: Make) -> None:
    folder = make_diffusion()[1]
    layer = read(folder).layers[0].feed_forward
    checkpoint = Checkpoint(folder)
    gate, up = (
        checkpoint.read(f"model.decoder.layers.0.mlp.{part}_proj.weight") for part in ("gate", "up")
    )
    fused = checkpoint.read("model.decoder.layers.0.experts.gate_up_proj")
    assert isinstance(layer.gate_up, Tensor) and layer.experts is not None
    assert torch.equal(layer.gate_up[0::2], gate) and torch.equal(layer.gate_up[1::2], up)
    assert isinstance(layer.experts.gate_up, Tensor)
    interleaved = torch.cat((layer.experts.gate_up[:, 0::2], layer.experts.gate_up[:, 1::2]), 1)
    assert torch.equal(interleaved, fused)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_size_is_known_from_the_headers(folders: list[Path], dtype: torch.dtype) -> None:
    for folder in folders:
        checkpoint = Checkpoint(folder)
        predicted = weight_bytes(checkpoint, dtype)
        checkpoint.close()
        # Experts' scales stay in float32, and layers' scalars are numbers of the program.
        assert abs(size(read(folder, dtype)) - predicted) <= 200


def test_what_is_mapped_is_what_is_read(folders: list[Path]) -> None:
    for folder in folders:
        found = map_tensors(folder, GemmaConfig.from_directory(folder))
        assert found.skipped == read(folder).skipped


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all tensors that torch has made and not freed; what files map does not count."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        given = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((arguments, options))
            if isinstance(leaf, Tensor)
        }
        result = function(*arguments, **(options or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage(), given)
        return result

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        address, length = storage.data_ptr(), storage.nbytes()
        if address in given or address in self._known or not length:
            return
        self._known.add(address)
        self.now += length
        self.most = max(self.most, self.now)
        finalize(storage, self._free, address, length)

    def _free(self, address: int, length: int) -> None:
        self._known.discard(address)
        self.now -= length


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_reading_needs_little_beside_the_weights(
    make_diffusion: Make, tmp_path: Path, convention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A twentieth of them, with what is on the host: here a piece is smaller than a tensor."""
    monkeypatch.setattr(reading, "_PIECE", 2**18)
    _, saved = make_diffusion(
        hidden_size=256,
        intermediate_size=192,
        moe_intermediate_size=128,
        num_experts=64,
        vocab_size=1024,
        num_hidden_layers=6,
        layer_types=["sliding_attention"] * 5 + ["full_attention"],
    )
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    if convention != "plain":
        write_nvfp4(folder, convention)
    else:
        rounded = {name: tensor.bfloat16() for name, tensor in tensors_of(folder).items()}
        save_file(rounded, folder / SINGLE)
    checkpoint, config = Checkpoint(folder), GemmaConfig.from_directory(folder)
    with Live() as live:
        weights = read_weights(checkpoint, config, CPU, torch.bfloat16)
    checkpoint.close()
    assert live.now == pytest.approx(size(weights), rel=0.01)
    assert live.most < 1.05 * size(weights)


PROCESS = """
import resource, sys, torch
from hybrid.engine.memory import weight_bytes
from hybrid.engine.reading import read_weights
from hybrid.gemma.checkpoint.tensors import Checkpoint
from hybrid.gemma.config import GemmaConfig
checkpoint, config = Checkpoint(sys.argv[1]), GemmaConfig.from_directory(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
weights = read_weights(checkpoint, config, torch.device("cpu"), torch.bfloat16)
taken = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(taken - weight_bytes(checkpoint, torch.bfloat16))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
@pytest.mark.parametrize("spelling", ["bf16", "modelopt", "compressed-tensors"])
def test_a_process_needs_little_beside_the_weights(
    tmp_path: Path, spelling: Spelling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers with fewer experts, and a vocabulary: its embedding alone has 369 MB."""
    monkeypatch.setattr(published, "LAYERS", 2)
    monkeypatch.setattr(published, "EXPERTS", 16)
    monkeypatch.setattr(published, "VOCABULARY", 65536)
    header = published.write_checkpoint(tmp_path, spelling, True, 1)
    if spelling != "bf16":
        published.write_ones(tmp_path / SINGLE, header)
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert int(done.stdout) < 80_000_000
