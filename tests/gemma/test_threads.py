"""At most as many small models at work as there are cores, each on one thread."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hybrid.gemma.threads import Cores, Threads


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(Threads, "_cores", Cores(2))
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


def test_whoever_waits_gets_the_next_core_the_urgent_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Threads, "_cores", Cores(1))
    order: list[str] = []

    def work(name: str, is_urgent: bool) -> None:
        with Threads(is_limited=True, is_urgent=is_urgent):
            order.append(name)

    with ThreadPoolExecutor(3) as threads:
        with Threads(is_limited=True):
            for waiting, name in enumerate(("first", "second", "urgent"), 1):
                threads.submit(work, name, name == "urgent")
                while len(Threads._cores._waiting) < waiting:
                    time.sleep(0.001)
        with Threads(is_limited=True):  # the thread that gave it back is the last in line
            order.append("again")
    assert order == ["urgent", "first", "second", "again"]


def test_ctrl_c_while_waiting_loses_no_core(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = Cores(1)
    monkeypatch.setattr(Threads, "_cores", cores)
    with Threads(is_limited=True):
        main = threading.main_thread().ident
        threading.Timer(0.1, signal.pthread_kill, [main, signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            cores.take(is_urgent=False)
    with Threads(is_limited=True):
        assert not cores._waiting


def test_large_models_wait_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Threads, "_cores", Cores(0))
    before = torch.get_num_threads()
    with Threads(is_limited=False):
        assert torch.get_num_threads() == before
