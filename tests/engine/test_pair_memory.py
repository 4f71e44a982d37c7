"""One memory plan for both models of a device."""

from pathlib import Path

import pytest
import torch

from hybrid.embedded import weights_path
from hybrid.engine import kv_cache_pool
from hybrid.engine.kv_cache_pool import MAX_BATCH_SIZE, outstanding_bytes
from hybrid.engine.load import load_engine, require_pair_memory
from hybrid.engine.memory import row_bytes
from hybrid.engine.pair_memory import CONTEXTS, ROWS, DevicePlan, PlannedModel, require_pair
from hybrid.errors import CapabilityError
from tests.gemma.published import write_checkpoint

GPU = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The published pair, by its headers."""
    folders = tmp_path_factory.mktemp("drafter"), tmp_path_factory.mktemp("refiner")
    for folder, is_drafter in zip(folders, (True, False), strict=True):
        write_checkpoint(folder, "modelopt", is_drafter, 2)
    return folders


@pytest.fixture(scope="module")
def plan(pair: tuple[Path, Path]) -> DevicePlan:
    return DevicePlan(*map(PlannedModel.from_directory, pair))


def set_free(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), 32 * 10**9))


def test_the_plan_is_the_sum_of_its_models(plan: DevicePlan) -> None:
    alone = DevicePlan(plan.drafter, None), DevicePlan(None, plan.refiner)
    both = sum(one.total_bytes(1, 4096) for one in alone)
    assert plan.total_bytes(1, 4096) == both - 700_000_000  # CUDA itself is there once


@pytest.mark.parametrize("free", [40e9, 45e9, 60e9])
def test_what_fits_fits_and_what_is_next_does_not(plan: DevicePlan, free: float) -> None:
    rows, context = plan.max_rows(int(free), 4096), plan.max_context(int(free), 1)
    assert plan.total_bytes(rows, 4096) <= free and plan.total_bytes(1, context) <= free
    if rows < ROWS[0]:
        assert plan.total_bytes(2 * rows, 4096) > free
    if context < CONTEXTS[0]:
        assert plan.total_bytes(1, 2 * context) > free


def test_a_pair_that_does_not_fit_is_told_what_would(
    plan: DevicePlan, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = plan.total_bytes(1, 4096)
    set_free(monkeypatch, needed)
    require_pair_memory(pair[0], "auto", pair[1], "cuda:0")
    set_free(monkeypatch, 31e9)
    with pytest.raises(CapabilityError) as caught:
        require_pair_memory(pair[0], "auto", pair[1], "cuda")
    message = str(caught.value)
    assert "drafter: 17.74 GB of weights" in message and "refiner: 17.70 GB" in message
    assert "31.00 GB are free" in message
    assert "the drafter alone fits and leaves" in message
    assert "models.refiner.device" in message
    require_pair_memory(pair[0], "cuda:0", pair[1], "cuda:1")
    require_pair_memory(pair[0], "cuda:0", pair[1], "cpu")


def test_less_memory_may_do_with_a_shorter_context(
    plan: DevicePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_free(monkeypatch, plan.total_bytes(1, 2048))
    assert plan.drafter and plan.refiner
    with pytest.raises(CapabilityError, match="a context of 2048 tokens fits"):
        require_pair(plan.drafter, plan.refiner, GPU)


def test_a_drafter_that_is_too_large_by_itself(
    plan: DevicePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_free(monkeypatch, 16e9)
    assert plan.drafter and plan.refiner
    with pytest.raises(CapabilityError, match=r"drafter alone is .* GB too large"):
        require_pair(plan.drafter, plan.refiner, GPU)


def test_rows_leave_room_for_the_other_models_first_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it has taken it: what is allocated is no longer free."""
    cpu = torch.device("cpu")
    others = outstanding_bytes(cpu)
    refiner = load_engine(weights_path("refiner"), cpu, torch.bfloat16)
    reserved = outstanding_bytes(cpu) - others
    assert reserved > 0
    cache = refiner.new_cache(1, 4096)
    assert outstanding_bytes(cpu) - others < reserved
    del cache
    drafter = load_engine(weights_path("drafter"), cpu, torch.bfloat16)
    pool = drafter._pool
    monkeypatch.setattr(pool, "_device", GPU)
    monkeypatch.setattr(kv_cache_pool, "outstanding_bytes", lambda device, besides: 10**9)
    row = row_bytes(drafter.config, 4096, torch.bfloat16)
    enough = (MAX_BATCH_SIZE + 1) * row + pool._work_bytes(MAX_BATCH_SIZE)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (enough + 10**9, 10**12))
    assert pool.max_batch_size(4096) == MAX_BATCH_SIZE
    pool._batch_sizes.clear()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (enough + 10**9 - 1, 10**12))
    assert pool.max_batch_size(4096) == MAX_BATCH_SIZE // 2
