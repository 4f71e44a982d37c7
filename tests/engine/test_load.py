"""Where a model goes, and what it takes there."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from hybrid.embedded import weights_path
from hybrid.engine import host, load, memory
from hybrid.engine.load import load_engine, load_fastest
from hybrid.engine.memory import decoded_bytes, plan_memory, require_memory, weight_bytes
from hybrid.errors import CapabilityError
from hybrid.gemma.checkpoint.tensors import Checkpoint
from hybrid.gemma.config import GemmaConfig
from hybrid.gemma.model.gemma import GemmaModel
from hybrid.kernels import launch
from tests.gemma.published import write_checkpoint

FOLDER = weights_path("drafter")


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in a tree of dataclasses and tuples."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple):
        return [tensor for part in value for tensor in tensors(part)]
    if is_dataclass(value):
        return [t for field in fields(value) for t in tensors(getattr(value, field.name))]
    return []


def test_a_small_model_stays_on_the_cpu() -> None:
    assert isinstance(load_fastest(FOLDER), GemmaModel)
    assert isinstance(load_fastest(FOLDER, "cpu"), GemmaModel)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(CapabilityError, match=r"on cuda:1: a CUDA device"):
        load_fastest(FOLDER, "cuda:1")


def test_four_bit_activations_are_refused_on_a_cpu() -> None:
    with pytest.raises(CapabilityError, match=r"on cpu: activations: nvfp4 needs .* 10.0, 10.3, 1"):
        load_fastest(FOLDER, "cpu", "nvfp4")


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0), (12, 0)])
def test_four_bit_activations_need_a_blackwell_gpu_and_four_bit_weights(
    make_causal: Callable[..., tuple[Any, Path]],
    capability: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU that can is refused only for weights that are not NVFP4."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    monkeypatch.setattr(launch, "_capability", lambda device: capability[0] * 10 + capability[1])
    words = "not NVFP4" if capability[0] >= 10 else r"\(Card\): activations: nvfp4 needs"
    with pytest.raises(CapabilityError, match=words):
        load_fastest(make_causal()[1], "cuda", "nvfp4")


@pytest.mark.parametrize("role", ["drafter", "refiner"])
def test_weights_take_the_bytes_that_headers_predict(role: Literal["drafter", "refiner"]) -> None:
    folder = weights_path(role)
    checkpoint = Checkpoint(folder)
    predicted = weight_bytes(checkpoint, torch.bfloat16)
    model = load_engine(folder, torch.device("cpu"), torch.bfloat16)
    taken = sum(tensor.nbytes for tensor in tensors(model.weights))
    assert abs(taken - predicted) < 0.01 * taken


def test_what_does_not_fit_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, config = Checkpoint(FOLDER), GemmaConfig.from_directory(FOLDER)
    plan = plan_memory(checkpoint, config, rows=1)
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (plan.total, 2 * plan.total))
    assert require_memory(checkpoint, config, gpu, torch.bfloat16) == plan
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (plan.total - 1, plan.total))
    with pytest.raises(CapabilityError, match=r"Card.*needs .* GB of weights.*GB are free"):
        require_memory(checkpoint, config, gpu, torch.bfloat16)


def test_a_large_model_on_a_cpu_needs_room_for_its_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Decoded to float32, it is many times its files; the system would end the process."""
    monkeypatch.setattr(load, "SMALL_HIDDEN_SIZE", 1)
    needed = decoded_bytes(Checkpoint(FOLDER), GemmaConfig.from_directory(FOLDER))
    monkeypatch.setattr(memory, "free_memory", lambda: needed)
    model = load_fastest(FOLDER, "cpu")
    assert isinstance(model, GemmaModel)
    held = sum(tensor.nbytes for tensor in {id(t): t for t in tensors(model.weights)}.values())
    assert held < needed < 1.5 * held
    monkeypatch.setattr(memory, "free_memory", lambda: needed - 1)
    with pytest.raises(
        CapabilityError, match=r"on cpu: needs .* GB .* float32, and .* GB are free"
    ):
        load_fastest(FOLDER, "cpu")
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    load_fastest(FOLDER, "cpu")


def test_the_published_drafter_is_too_large_for_most_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """18.8 GB of files are 25.3 billion numbers of four bytes."""
    write_checkpoint(tmp_path, "modelopt", True, 2)
    monkeypatch.setattr(memory, "free_memory", lambda: 64_000_000_000)
    with pytest.raises(
        CapabilityError, match=r"on cpu: needs 105\.\d\d GB .*, and 64.00 GB are free"
    ):
        load_fastest(tmp_path, "cpu")


def test_free_memory_is_the_machines_or_the_containers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(host, "_GROUP", tmp_path)
    assert host.free_memory() is None
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:   500 kB\n")
    assert host.free_memory() == 500 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("300000\n")
    assert host.free_memory() == 500 * 1024
    (tmp_path / "memory.max").write_text("400000\n")
    assert host.free_memory() == 100_000
    (tmp_path / "memory.stat").write_text("anon 7\ninactive_file 50000\n")
    assert host.free_memory() == 150_000


def test_memory_that_others_took_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*given: object) -> None:
        raise torch.OutOfMemoryError("no 2 MiB")

    monkeypatch.setattr(load, "read_weights", read)
    with pytest.raises(CapabilityError, match=r"needs .* GB of weights.*no 2 MiB"):
        load_engine(FOLDER, torch.device("cpu"), torch.bfloat16)


def test_more_rows_take_more_cache_and_work() -> None:
    config = GemmaConfig.from_directory(FOLDER)
    one = plan_memory(Checkpoint(FOLDER), config, rows=1)
    four = plan_memory(Checkpoint(FOLDER), config, rows=4)
    assert four.weights == one.weights
    assert four.cache * 2 == one.cache * 5  # a row more than asked for is kept for idle places
    assert four.work > one.work
