"""Many callers, one drafter: what each gets, and what the others notice of it."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from hybrid.deadline import Deadline
from hybrid.drafters import engine_pool
from hybrid.drafters.diffusion_gemma import DiffusionGemmaDrafter
from hybrid.drafters.engine import DraftEngine
from hybrid.drafters.engine_pool import EnginePool
from hybrid.drafters.sequence import DraftSequence
from hybrid.embedded import weights_path
from hybrid.errors import BackendError, Cancelled, RequestError
from hybrid.priority import PriorityQueue
from hybrid.protocols import DraftJob
from hybrid.types import Draft, DraftParams, Request
from tests.drafters.scripted_runner import ScriptedRunner, scripted_engine, scripted_sequence

PROMPTS = ("sort up: 4 8 1 9 3", "add 12 + 34", "solve x + y == 11; q + b == 2", "in words: 345")


@pytest.fixture(scope="module")
def drafter() -> DiffusionGemmaDrafter:
    return DiffusionGemmaDrafter.from_directory(weights_path("drafter"))


def of_size(drafter: DiffusionGemmaDrafter, max_batch_size: int) -> DiffusionGemmaDrafter:
    """The drafter with room for so many sequences."""
    return DiffusionGemmaDrafter(drafter.model, drafter.tokenizer, max_batch_size=max_batch_size)


def job(prompt: str, seed: int = 0, steps: int = 8, deadline: Deadline | None = None) -> DraftJob:
    params = DraftParams(max_denoising_steps=steps)
    return DraftJob(Request(prompt), params, seed, 32, deadline or Deadline())


def test_everybody_gets_the_answer_of_their_own_seed(drafter: DiffusionGemmaDrafter) -> None:
    jobs = [job(PROMPTS[seed % 4], seed, steps=1 + seed % 9) for seed in range(24)]
    alone = [drafter.draft([one])[0] for one in jobs]
    small = of_size(drafter, 5)
    with ThreadPoolExecutor(12) as threads:
        together = list(threads.map(lambda one: small.draft([one])[0], jobs))
    assert [d.token_ids for d in together] == [d.token_ids for d in alone]
    assert [d.steps for d in together] == [d.steps for d in alone]


def test_several_jobs_of_one_caller_keep_their_order(drafter: DiffusionGemmaDrafter) -> None:
    jobs = [job(prompt) for prompt in PROMPTS]
    drafts = of_size(drafter, 2).draft(jobs)
    assert [d.text for d in drafts] == [drafter.draft([one])[0].text for one in jobs]


def test_a_wrong_job_is_refused_before_it_waits(drafter: DiffusionGemmaDrafter) -> None:
    with pytest.raises(RequestError, match="max_denoising_steps"):
        drafter.draft([job("add 1 + 2", steps=0)])
    assert drafter.num_waiting == 0
    assert drafter.draft([job("add 1 + 2")])[0].text


def test_a_prompt_too_long_for_the_cache_gets_an_engine_with_a_larger_one(
    drafter: DiffusionGemmaDrafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybrid.drafters.diffusion_gemma._USUAL_TOTAL_TOKENS", 64)
    small = of_size(drafter, 2)
    jobs = [job("add 12 + 34"), job("add 12 + 34 " * 30), job("add 12 + 34")]
    with ThreadPoolExecutor(3) as threads:
        drafts = list(threads.map(lambda one: small.draft([one])[0], jobs))
    assert [d.text for d in drafts] == [drafter.draft([one])[0].text for one in jobs]


def test_a_deadline_runs_while_the_job_waits(drafter: DiffusionGemmaDrafter) -> None:
    small = of_size(drafter, 1)
    with ThreadPoolExecutor(2) as threads:
        long = threads.submit(small.draft, [job(PROMPTS[0], steps=8)])
        (late,) = small.draft([job(PROMPTS[2], steps=8, deadline=Deadline.after(1e-6))])
        assert long.result(10)[0].finish_reason == "stop"
    assert late.finish_reason == "budget"
    assert late.steps == 1


def pool_of(*runners: ScriptedRunner) -> EnginePool:
    """A pool of one engine, on the runners one after the other: each engine made takes the next."""
    left = list(runners)

    def new_engine(waiting: PriorityQueue[DraftSequence], max_total_tokens: int) -> DraftEngine:
        runner = left.pop(0)
        runner.max_total_tokens = max_total_tokens
        return scripted_engine(runner, waiting)

    return EnginePool(new_engine, num_engines=1, usual_total_tokens=64)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_least_time_is_admitted_first_as_soon_as_a_row_is_free() -> None:
    runner = ScriptedRunner(max_batch_size=1)
    pool = pool_of(runner)
    budgets = (None, 3600.0, 0.5, 0.2)  # the first is at work before the others ask
    with ThreadPoolExecutor(4) as threads:
        for seed, budget_s in enumerate(budgets):
            sequence = scripted_sequence(seed, deadline=Deadline.after(budget_s))
            threads.submit(pool.draft, [sequence])
            until(lambda seed=seed: runner.log == ["+0"] and pool.num_waiting == seed)  # type: ignore[misc]
        runner.gate.set()
    assert runner.log == ["+0", "+3", "+2", "+1"]


def test_a_cancelled_caller_leaves_the_queue_at_once_and_an_engine_within_a_step() -> None:
    runner = ScriptedRunner(max_batch_size=1)
    pool, working, waiting = pool_of(runner), Deadline(), Deadline()
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(pool.draft, [scripted_sequence(1, 1000, working)])
        until(lambda: runner.log == ["+1"])
        second = threads.submit(pool.draft, [scripted_sequence(2, 1000, waiting)])
        third = threads.submit(pool.draft, [scripted_sequence(3)])
        until(lambda: pool.num_waiting == 2)
        waiting.cancel()
        with pytest.raises(Cancelled):
            second.result(5)
        working.cancel()
        runner.gate.set()
        with pytest.raises(Cancelled):
            first.result(5)
        assert third.result(5)[0].steps == 1
    assert runner.log == ["+1", "+3"]


def test_one_of_several_jobs_that_fails_drops_the_others() -> None:
    runner = ScriptedRunner(max_batch_size=2)
    pool, gone = pool_of(runner), Deadline()
    with ThreadPoolExecutor(2) as threads:
        several = [scripted_sequence(1, 1000, gone), scripted_sequence(2, 1000)]
        both = threads.submit(pool.draft, several)
        until(lambda: runner.log == ["+1", "+2"])
        third = threads.submit(pool.draft, [scripted_sequence(3)])
        gone.cancel()
        runner.gate.set()
        with pytest.raises(Cancelled):
            both.result(5)
        assert third.result(5)
    until(several[1].finished.is_set)


def test_a_failing_model_fails_what_runs_and_not_what_waits() -> None:
    broken = ScriptedRunner(max_batch_size=1, failures=[BackendError("draft", "out of memory")])
    pool = pool_of(broken, mended := ScriptedRunner())
    mended.gate.set()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(pool.draft, [scripted_sequence(1)])
        until(lambda: broken.log == ["+1"])
        second = threads.submit(pool.draft, [scripted_sequence(2)])
        until(lambda: pool.num_waiting == 1)
        broken.gate.set()
        assert isinstance(first.exception(5), BackendError)
        assert isinstance(second.result(5)[0], Draft)
    assert mended.log == ["+2"]


def test_an_engine_that_cannot_be_made_fails_whoever_waits_for_it() -> None:
    def no_memory(waiting: PriorityQueue[DraftSequence], max_total_tokens: int) -> DraftEngine:
        raise BackendError("draft", "no memory for a cache")

    pool = EnginePool(no_memory, num_engines=1, usual_total_tokens=64)
    for _ in range(2):
        with pytest.raises(BackendError, match="no memory"):
            pool.draft([scripted_sequence(1)])


def test_a_longer_sequence_waits_for_an_engine_with_a_larger_cache() -> None:
    usual, larger = ScriptedRunner(), ScriptedRunner()
    pool = pool_of(usual, larger)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(pool.draft, [scripted_sequence(1)])
        until(lambda: usual.log == ["+1"])
        second = threads.submit(pool.draft, [scripted_sequence(2, total_tokens=100)])
        until(lambda: pool.num_waiting == 1)
        larger.gate.set()
        usual.gate.set()
        assert first.result(5) and second.result(5)
    assert (usual.log, larger.log, larger.max_total_tokens) == (["+1"], ["+2"], 100)


def test_the_thread_ends_when_idle_and_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_pool, "_IDLE_S", 0.02)
    runners = [ScriptedRunner(), ScriptedRunner()]
    pool = pool_of(*runners)
    for runner in runners:
        runner.gate.set()
        assert pool.draft([scripted_sequence(1)])
        until(lambda: not any(t.name == "hybrid-drafter" for t in threading.enumerate()))
    assert [runner.log for runner in runners] == [["+1"], ["+1"]]
