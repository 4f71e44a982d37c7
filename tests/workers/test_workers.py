"""`Hybrid(workers=...)`: the same answers from other processes, and what happens when they die."""

import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hybrid import Hybrid
from hybrid.cores import given_cores, share_of
from hybrid.errors import (
    BackendError,
    Cancelled,
    CapabilityError,
    CheckpointError,
    DeadlineExceeded,
    HybridError,
    PolicyError,
    Problem,
    RequestError,
)
from hybrid.types import Denoised, Drafted, Finished, Planned
from hybrid.workers.process import WorkerProcess

pytestmark = pytest.mark.serial

PROMPTS = ("sort up: 4 8 1 9 3", "add 12 + 34", "in words: 345", "solve x + y == 11; q + b == 2")
DRAFTS = """\
version: 1
models: {refiner: null}
defaults: {draft: {max_denoising_steps: 4}, refine: {mode: none}}
"""
APPLICATION = """\
def customer(request):
    return request.prompt.split()[0]

def rule(request, signals):
    return {"draft": {"max_denoising_steps": 3}} if signals.custom["customer"] == "add" else None

def is_short(text):
    return len(text) < 80
"""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A module of the application's, beside its script."""
    folder = tmp_path_factory.mktemp("application")
    (folder / "my_application.py").write_text(APPLICATION)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield __import__("my_application")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("policy") / "drafts.yaml"
    file.write_text(DRAFTS)
    return file


@pytest.fixture(scope="module")
def hybrid(policy: Path, application: Any) -> Iterator[Hybrid]:
    signals = {"customer": application.customer}
    with Hybrid.from_policy(
        policy, watch=True, workers=2, signals=signals, rule=application.rule
    ) as made:
        yield made


def processes(hybrid: Hybrid) -> list[WorkerProcess]:
    return list(hybrid._host._workers.values())  # type: ignore[union-attr]


def test_many_callers_get_the_answers_that_one_process_gives(hybrid: Hybrid) -> None:
    with ThreadPoolExecutor(8) as threads:
        asked = [
            threads.submit(hybrid.generate, PROMPTS[seed % 4], seed=seed) for seed in range(16)
        ]
        answers = [one.result(60) for one in asked]
    with Hybrid.from_policy(hybrid.policy) as alone:
        expected = [alone.generate(PROMPTS[seed % 4], seed=seed) for seed in range(16)]
    short = [answer for answer in answers if answer.plan.label == "3 steps"]
    assert len(short) == 4  # the application's rule
    same = [(a.text, e.text) for a, e in zip(answers, expected, strict=True) if a not in short]
    assert len(same) == 12
    assert all(answer == other for answer, other in same)


def test_a_stream_tells_every_step(hybrid: Hybrid) -> None:
    events = list(hybrid.stream(PROMPTS[0], seed=1, confidence_threshold=0.0))
    assert [type(e) for e in events] == [Planned, *[Denoised] * 4, Drafted, Finished]
    assert isinstance(events[-1], Finished)
    again = hybrid.generate(PROMPTS[0], seed=1, confidence_threshold=0.0)
    assert events[-1].result.text == again.text


def test_explain_and_the_latency_basis(hybrid: Hybrid) -> None:
    assert hybrid.explain(PROMPTS[1]).label == "3 steps"
    assert hybrid.latency_basis


def test_errors_are_those_that_one_process_raises(hybrid: Hybrid) -> None:
    with pytest.raises(RequestError, match="infill") as wrong:
        hybrid.fill("add 1 + 2", "<blank:0>")
    assert wrong.value.field == "infill"
    with pytest.raises(RequestError, match="refine"):
        hybrid.generate(PROMPTS[0], refine="verify")  # the policy has no refiner


def test_checks_are_functions_that_can_be_imported(hybrid: Hybrid, application: Any) -> None:
    answer = hybrid.generate(PROMPTS[0], checks=[application.is_short, {"contains": "1"}])
    assert [check.passed for check in answer.checks] == [True, True]
    with pytest.raises(RequestError, match=r"checks: .* of a module that can be imported"):
        hybrid.generate(PROMPTS[0], checks=[lambda text: True])
    assert hybrid.generate(PROMPTS[0]).text


def test_signals_and_rules_that_cannot_be_sent_are_refused_at_once(policy: Path) -> None:
    with pytest.raises(RequestError, match=r"signals and rule: .* can be imported"):
        Hybrid.from_policy(policy, workers=1, signals={"customer": lambda request: "gold"})


def test_a_function_that_the_worker_cannot_import_is_a_request_error(
    policy: Path, application: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "application" not in p])
    hybrid = Hybrid.from_policy(policy, workers=1, rule=application.rule)
    with pytest.raises(RequestError, match="No module named 'my_application'"):
        hybrid.load()


def test_a_changed_policy_is_in_force_from_the_next_request_on(
    hybrid: Hybrid, policy: Path
) -> None:
    policy.write_text(DRAFTS.replace("steps: 4", "steps: 12"))
    try:
        labels = {hybrid.generate(PROMPTS[0]).plan.label for _ in range(3)}
        assert labels == {"12 steps"}
    finally:
        policy.write_text(DRAFTS)


def test_closing_a_stream_frees_the_worker(hybrid: Hybrid) -> None:
    options = {"max_denoising_steps": 512, "confidence_threshold": 0.0, "max_new_tokens": 200}
    stream = hybrid.stream(PROMPTS[0], **options)  # type: ignore[arg-type]
    assert isinstance(next(stream), Planned)
    assert isinstance(next(stream), Denoised)
    stream.close()
    assert [worker.in_flight for worker in processes(hybrid)] == [0, 0]
    assert not any(worker._open for worker in processes(hybrid))


def test_ctrl_c_cancels_what_the_caller_waits_for(hybrid: Hybrid) -> None:
    options = {"max_denoising_steps": 512, "confidence_threshold": 0.0, "max_new_tokens": 200}
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.3, signal.pthread_kill, [main, signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        hybrid.generate(PROMPTS[0], **options)  # type: ignore[arg-type]
    started = time.monotonic()
    assert hybrid.generate(PROMPTS[0]).text
    assert time.monotonic() - started < 10


def test_the_budget_runs_in_the_worker(hybrid: Hybrid) -> None:
    options = {"max_denoising_steps": 512, "confidence_threshold": 0.0, "max_new_tokens": 200}
    answer = hybrid.generate(PROMPTS[0], budget="100ms", **options)  # type: ignore[arg-type]
    assert answer.finish_reason == "budget"
    assert answer.timing.budget_s == 0.1


def test_a_worker_that_dies_fails_its_requests_and_is_replaced(hybrid: Hybrid) -> None:
    options = {"max_denoising_steps": 512, "confidence_threshold": 0.0, "max_new_tokens": 400}
    stream = hybrid.stream(PROMPTS[0], **options)  # type: ignore[arg-type]
    next(stream)
    busy = max(processes(hybrid), key=lambda worker: worker.in_flight)
    os.kill(busy._process.pid, signal.SIGKILL)
    with pytest.raises(BackendError, match=r"has ended \(exit status -9\)") as died:
        list(stream)
    assert died.value.retryable
    assert hybrid.generate(PROMPTS[0]).text
    hybrid.load()  # whoever answers does not wait for the one that is started anew
    assert len(processes(hybrid)) == 2
    assert all(worker.is_alive for worker in processes(hybrid))


def test_the_processes_end_with_the_hybrid(hybrid: Hybrid) -> None:
    hybrid.load()
    ended = list(processes(hybrid))
    hybrid.close()
    assert [worker._process.returncode for worker in ended] == [0, 0]
    assert hybrid.generate(PROMPTS[0]).text  # others start


def test_models_that_are_handed_over_stay_here() -> None:
    from hybrid.backends import Models
    from hybrid.policies.loader import load_policy

    with pytest.raises(RequestError, match="workers"):
        Hybrid(load_policy("fast"), Models(None, None), workers=2)
    with pytest.raises(RequestError, match="workers"):
        Hybrid.from_policy("fast", workers=-1)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores cannot be chosen here")
def test_workers_divide_the_cores_however_many_this_process_uses(
    hybrid: Hybrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    hybrid.close()
    hybrid.load()
    chosen = [os.sched_getaffinity(worker._process.pid) for worker in processes(hybrid)]
    assert chosen == [set(share_of(given_cores(), number, 2)) for number in range(2)]
    assert len(given_cores()) == 1 or not chosen[0] & chosen[1]


@pytest.mark.parametrize(
    ("cores", "count", "shares"),
    [
        ([0, 1], 2, [[0], [1]]),
        ([2, 3, 6, 7], 2, [[2, 3], [6, 7]]),
        ([0, 1, 2, 3, 4], 2, [[0, 1], [2, 3]]),
        ([0, 1], 5, [[0], [1], [0], [1], [0]]),
        ([4], 2, [[4], [4]]),
    ],
)
def test_shares_of_cores(cores: list[int], count: int, shares: list[list[int]]) -> None:
    assert [share_of(cores, number, count) for number in range(count)] == shares


@pytest.mark.parametrize(
    "error",
    [
        RequestError("budget", "0s", "a duration above zero"),
        PolicyError([Problem("p.yaml", 1, 2, "rules", "is wrong")]),
        CheckpointError("model.safetensors", "is cut short", "embed_tokens.weight"),
        BackendError("draft", "out of memory", retryable=True),
        CapabilityError("NVFP4", "cpu", "a GPU"),
        DeadlineExceeded("no answer within 2 s"),
        Cancelled("by the caller"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_whole(error: HybridError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.__dict__) == (str(error), error.__dict__)
