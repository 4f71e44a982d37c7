"""Many callers, one drafter: what each gets, and what the others notice of it."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from hybrid.batching import SharedDrafter, share
from hybrid.deadline import Deadline
from hybrid.drafters.diffusion_gemma import DiffusionGemmaDrafter
from hybrid.drafters.scripted import ScriptedDrafter
from hybrid.embedded import weights_path
from hybrid.errors import BackendError, Cancelled, RequestError
from hybrid.protocols import DraftJob
from hybrid.types import Draft, DraftParams, Request

PROMPTS = ("sort up: 4 8 1 9 3", "add 12 + 34", "solve x + y == 11; q + b == 2", "in words: 345")


@pytest.fixture(scope="module")
def drafter() -> DiffusionGemmaDrafter:
    return DiffusionGemmaDrafter.from_directory(weights_path("drafter"))


def job(prompt: str, seed: int = 0, steps: int = 8, deadline: Deadline | None = None) -> DraftJob:
    params = DraftParams(max_denoising_steps=steps)
    return DraftJob(Request(prompt), params, seed, 32, deadline or Deadline())


def test_everybody_gets_the_answer_of_their_own_seed(drafter: DiffusionGemmaDrafter) -> None:
    jobs = [job(PROMPTS[seed % 4], seed, steps=1 + seed % 9) for seed in range(24)]
    alone = [drafter.draft([one])[0] for one in jobs]
    shared = SharedDrafter(drafter, slots=5)
    with ThreadPoolExecutor(12) as threads:
        together = list(threads.map(lambda one: shared.draft([one])[0], jobs))
    assert [d.token_ids for d in together] == [d.token_ids for d in alone]
    assert [d.steps for d in together] == [d.steps for d in alone]


def test_several_jobs_of_one_caller_keep_their_order(drafter: DiffusionGemmaDrafter) -> None:
    jobs = [job(prompt) for prompt in PROMPTS]
    drafts = SharedDrafter(drafter, slots=2).draft(jobs)
    assert [d.text for d in drafts] == [drafter.draft([one])[0].text for one in jobs]


def test_a_wrong_job_is_refused_before_it_waits(drafter: DiffusionGemmaDrafter) -> None:
    shared = SharedDrafter(drafter)
    with pytest.raises(RequestError, match="max_denoising_steps"):
        shared.draft([job("add 1 + 2", steps=0)])
    assert shared.draft([job("add 1 + 2")])[0].text


def test_a_prompt_too_long_for_the_batch_gets_a_larger_one(
    drafter: DiffusionGemmaDrafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybrid.batching._CAPACITY", 64)
    shared = SharedDrafter(drafter, slots=2)
    jobs = [job("add 12 + 34"), job("add 12 + 34 " * 30), job("add 12 + 34")]
    with ThreadPoolExecutor(3) as threads:
        drafts = list(threads.map(lambda one: shared.draft([one])[0], jobs))
    assert [d.text for d in drafts] == [drafter.draft([one])[0].text for one in jobs]


def test_only_a_drafter_with_batches_is_shared(drafter: DiffusionGemmaDrafter) -> None:
    scripted = ScriptedDrafter({"a": "b"})
    assert share(scripted) is scripted
    assert share(None) is None
    assert isinstance(share(drafter), SharedDrafter)


# The rest is about turns and failures: a drafter whose rows end after so many steps, without a
# model, and which keeps a diary.


@dataclass(frozen=True)
class Ready:
    job: DraftJob
    room: int


@dataclass
class Rows:
    """A batch that ends a row after its `max_denoising_steps` steps."""

    slots: int
    capacity: int
    owner: "Counting"
    rows: dict[int, list[int]] = field(default_factory=dict)
    jobs: dict[int, DraftJob] = field(default_factory=dict)

    @property
    def active(self) -> int:
        return len(self.jobs)

    @property
    def free(self) -> int:
        return self.slots - len(self.jobs)

    def is_urgent(self, deadline: Deadline, joining: int = 0) -> bool:
        return deadline.remaining_s < 1

    @property
    def has_urgent(self) -> bool:
        return any(self.is_urgent(job.deadline) for job in self.jobs.values())

    def admit(self, assignments: Sequence[Ready]) -> list[int]:
        free = [number for number in range(self.slots) if number not in self.jobs]
        numbers = free[: len(assignments)]
        for number, ready in zip(numbers, assignments, strict=True):
            self.jobs[number], self.rows[number] = ready.job, [0]
            self.owner.diary.append(f"+{ready.job.seed}")
        return numbers

    def release(self, number: int) -> None:
        self.owner.diary.append(f"x{self.jobs.pop(number).seed}")

    def step(self) -> dict[int, Draft | Exception]:
        self.owner.before_step()
        ended: dict[int, Draft | Exception] = {}
        for number, one in list(self.jobs.items()):
            self.rows[number][0] += 1
            try:
                one.deadline.raise_if_cancelled()
            except Cancelled as error:
                ended[number] = error
            if self.rows[number][0] >= one.params.max_denoising_steps:
                ended[number] = Draft((), str(one.seed), (), (), "stop")
        for number in ended:
            self.owner.diary.append(f"-{self.jobs.pop(number).seed}")
        return ended


@dataclass
class Counting:
    """The drafter of `Rows`; `gate` holds every step back until it is set."""

    diary: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    failures: list[Exception] = field(default_factory=list)
    batches: int = 1
    canvas_length: int = 32
    max_context: int = 512
    vocabulary: Mapping[str, int] = field(default_factory=dict)

    def count_prompt_tokens(self, request: Request) -> int:
        return 1

    def count_blank_tokens(self, request: Request) -> int:
        return 0

    def draft(self, jobs: Sequence[DraftJob]) -> list[Draft]:
        raise AssertionError("shared drafters use batches")

    def prepare(self, job: DraftJob) -> Ready:
        return Ready(job, 32)

    def open_batch(self, slots: int, capacity: int) -> Rows:
        return Rows(slots, capacity, self)

    def before_step(self) -> None:
        self.gate.wait(5)
        if self.failures:
            raise self.failures.pop()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_rows_are_admitted_in_the_order_of_asking_as_soon_as_one_is_free() -> None:
    counting = Counting()
    shared = SharedDrafter(counting, slots=2)
    with ThreadPoolExecutor(5) as threads:
        asked = []
        for seed, steps in enumerate((4, 1, 1, 1, 1)):
            asked.append(threads.submit(shared.draft, [job("x", seed, steps)]))
            until(lambda: len(shared._waiting) + len(counting.diary) == len(asked))
        counting.gate.set()
        assert [a.result(5)[0].text for a in asked] == ["0", "1", "2", "3", "4"]
    # The long row 0 keeps its place while the others take turns on the second.
    assert counting.diary.index("-0") > counting.diary.index("-2")
    assert [line for line in counting.diary if line[0] == "+"] == ["+0", "+1", "+2", "+3", "+4"]


def test_one_callers_jobs_are_spread_over_all_batches() -> None:
    counting = Counting(batches=2)
    shared = SharedDrafter(counting, slots=8)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(shared.draft, [job("x", seed, 2) for seed in range(8)])
        until(lambda: len(counting.diary) > 4)  # before a step, and a batch has four rows
        counting.gate.set()
        assert [draft.text for draft in asked.result(5)] == [str(seed) for seed in range(8)]


def test_of_those_in_line_whoever_has_the_least_time_is_admitted_first() -> None:
    counting = Counting()
    shared = SharedDrafter(counting, slots=1)
    budgets = (None, 3600.0, 0.5, 0.2)  # the first is at work before the others ask
    with ThreadPoolExecutor(4) as threads:
        for seed, budget_s in enumerate(budgets):
            threads.submit(shared.draft, [job("x", seed, 1, Deadline.after(budget_s))])
            until(lambda seed=seed: len(shared._waiting) + len(counting.diary) == seed + 1)  # type: ignore[misc]
        counting.gate.set()
    assert [line for line in counting.diary if line[0] == "+"] == ["+0", "+3", "+2", "+1"]


def test_those_in_a_hurry_are_admitted_by_themselves() -> None:
    counting = Counting()
    shared = SharedDrafter(counting, slots=4)
    with ThreadPoolExecutor(5) as threads:
        threads.submit(shared.draft, [job("x", 0, 1)])
        until(lambda: counting.diary == ["+0"])
        for seed, budget_s in enumerate((3600.0, None, 0.5, 0.2), 1):
            threads.submit(shared.draft, [job("x", seed, 1, Deadline.after(budget_s))])
            until(lambda seed=seed: len(shared._waiting) == seed)  # type: ignore[misc]
        counting.gate.set()
    admitted = counting.diary[: counting.diary.index("-4")]
    assert admitted == ["+0", "-0", "+4", "+3"]


def test_a_cancelled_caller_leaves_the_line_at_once_and_a_row_within_a_step() -> None:
    counting = Counting()
    shared = SharedDrafter(counting, slots=1)
    working, waiting = Deadline(), Deadline()
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(shared.draft, [job("x", 1, 1000, working)])
        until(lambda: counting.diary == ["+1"])
        second = threads.submit(shared.draft, [job("x", 2, 1000, waiting)])
        third = threads.submit(shared.draft, [job("x", 3, 1)])
        waiting.cancel()
        with pytest.raises(Cancelled):
            second.result(5)
        counting.gate.set()
        working.cancel()
        with pytest.raises(Cancelled):
            first.result(5)
        assert third.result(5)[0].text == "3"
    assert "+2" not in counting.diary


def test_a_failing_model_fails_those_in_the_batch_and_not_the_next() -> None:
    counting = Counting(failures=[BackendError("draft", "out of memory")])
    shared = SharedDrafter(counting, slots=4)
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(shared.draft, [job("x", seed, 3)]) for seed in (1, 2)]
        until(lambda: len(shared._waiting) + len(counting.diary) == 2)
        counting.gate.set()
        errors = [a.exception(5) for a in asked]
    assert any(isinstance(error, BackendError) for error in errors)
    assert shared.draft([job("x", 9, 1)])[0].text == "9"


def test_the_thread_ends_when_idle_and_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid.batching._IDLE_S", 0.02)
    counting = Counting()
    counting.gate.set()
    shared = SharedDrafter(counting)
    for seed in (1, 2):
        assert shared.draft([job("x", seed, 1)])[0].text == str(seed)
        until(lambda: not any(t.name == "hybrid-drafter" for t in threading.enumerate()))


def test_a_deadline_runs_while_the_job_waits(drafter: DiffusionGemmaDrafter) -> None:
    shared = SharedDrafter(drafter, slots=1)
    with ThreadPoolExecutor(2) as threads:
        long = threads.submit(shared.draft, [job(PROMPTS[0], steps=8)])
        (late,) = shared.draft([job(PROMPTS[2], steps=8, deadline=Deadline.after(1e-6))])
        assert long.result(10)[0].finish_reason == "stop"
    assert late.finish_reason == "budget"
    assert late.steps == 1
