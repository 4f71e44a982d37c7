"""At most as many small models at work as there are cores, each on one thread."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hybrid.gemma.threads import Threads, free_cores


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(Threads, "_cores", free_cores(2))
    return 2


def test_no_more_are_at_work_than_cores(cores: int) -> None:
    both, release = threading.Barrier(cores + 1), threading.Event()
    at_work: list[int] = []

    def work(number: int) -> None:
        with Threads(is_limited=True):
            at_work.append(number)
            assert torch.get_num_threads() == 1
            if len(at_work) <= cores:
                both.wait(5)
                release.wait(5)

    with ThreadPoolExecutor(3) as threads:
        done = [threads.submit(work, number) for number in range(3)]
        both.wait(5)  # two are at work
        assert len(at_work) == cores
        release.set()
        for one in done:
            one.result(5)
    assert len(at_work) == 3


def test_work_within_work_needs_no_second_core(cores: int) -> None:
    with Threads(is_limited=True), Threads(is_limited=True), Threads(is_limited=True):
        assert torch.get_num_threads() == 1


def test_a_core_is_given_back_when_the_work_fails(cores: int) -> None:
    for _ in range(cores + 1):
        with pytest.raises(KeyError), Threads(is_limited=True):
            raise KeyError


def test_large_models_wait_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Threads, "_cores", free_cores(0))
    before = torch.get_num_threads()
    with Threads(is_limited=False):
        assert torch.get_num_threads() == before
