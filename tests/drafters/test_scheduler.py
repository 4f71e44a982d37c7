"""Which sequences are admitted, and which of them take a step together."""

from hybrid.deadline import Deadline
from hybrid.drafters.scheduler import ScheduledStep, Scheduler
from hybrid.drafters.sequence import DraftSequence
from hybrid.priority import PriorityQueue
from tests.drafters.scripted_runner import scripted_sequence

ROW_S = 0.002


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def scheduler_of(
    *budgets_s: float | None, rows_cost_time: bool = True, clock: Clock | None = None
) -> tuple[Scheduler, PriorityQueue[DraftSequence]]:
    """A scheduler whose sequences 0, 1, ... run with these budgets and take ROW_S each."""
    waiting: PriorityQueue[DraftSequence] = PriorityQueue()
    made = Scheduler(waiting, 16, 64, rows_cost_time, clock=clock or Clock())
    for seed, budget_s in enumerate(budgets_s):
        push(waiting, seed, budget_s)
    admitted = made.admit()
    made.record_prefill(admitted, seconds=ROW_S * len(admitted))
    return made, waiting


def push(
    waiting: PriorityQueue[DraftSequence],
    seed: int,
    budget_s: float | None = None,
    total_tokens: int = 4,
) -> None:
    sequence = scripted_sequence(seed, 8, Deadline.after(budget_s), total_tokens)
    waiting.push(sequence.priority, sequence)


def seeds(sequences: ScheduledStep | list[DraftSequence]) -> list[int]:
    chosen = sequences.sequences if isinstance(sequences, ScheduledStep) else sequences
    return [sequence.job.seed for sequence in chosen]


def with_deadline(scheduler: Scheduler, seed: int, budget_s: float) -> None:
    """Give a running sequence another budget, as if time had passed."""
    (sequence,) = (one for one in scheduler.running if one.job.seed == seed)
    object.__setattr__(sequence.job, "deadline", Deadline.after(budget_s))


def test_all_step_together_while_there_is_time() -> None:
    scheduler, _ = scheduler_of(*[None] * 8)
    step = scheduler.schedule()
    assert (seeds(step), step.is_urgent, step.is_all) == ([*range(8)], False, True)


def test_sequences_without_time_step_alone() -> None:
    scheduler, _ = scheduler_of(*[None] * 5)
    with_deadline(scheduler, 3, 0.001)
    with_deadline(scheduler, 4, 0.002)
    step = scheduler.schedule()
    assert (seeds(step), step.is_urgent, step.is_all) == ([3, 4], True, False)


def test_a_short_budget_makes_the_others_step_in_small_groups() -> None:
    scheduler, waiting = scheduler_of(*[3600.0] * 7, 0.035)  # a fifth of it is three rows' step
    with_deadline(scheduler, 7, 3600.0)
    step = scheduler.schedule()
    assert (len(step.sequences), step.is_urgent, step.is_all) == (3, False, False)
    for _ in range(64):  # such budgets as come from now on
        scheduler.record_prefill(step.sequences[:1], ROW_S)
    assert scheduler.schedule().is_all
    assert not waiting


def test_groups_take_the_next_step_in_the_order_of_their_last_one() -> None:
    scheduler, _ = scheduler_of(*[3600.0] * 4, 0.0001)
    with_deadline(scheduler, 4, 3600.0)
    steps = [seeds(scheduler.schedule()) for _ in range(5)]
    assert all(len(step) == 2 for step in steps)  # at least two step together
    assert sorted(seed for step in steps for seed in step) == sorted([*range(5)] * 2)


def test_all_step_together_where_a_row_more_costs_nothing() -> None:
    scheduler, _ = scheduler_of(*[3600.0] * 7, 0.030, rows_cost_time=False)
    with_deadline(scheduler, 7, 3600.0)
    assert scheduler.schedule().is_all


def test_what_a_row_takes_is_learned_from_steps_of_many() -> None:
    scheduler, _ = scheduler_of(*[None] * 4)
    scheduler.record_step(scheduler.schedule(), seconds=4 * 0.010)
    assert scheduler.is_urgent(Deadline.after(0.070))
    with_deadline(scheduler, 0, 0.001)
    scheduler.record_step(scheduler.schedule(), seconds=0.3)  # alone: says nothing of the others
    assert not scheduler.is_urgent(Deadline.after(0.090))


def test_urgent_ones_make_nobody_wait_for_more_than_a_second() -> None:
    clock = Clock()
    scheduler, _ = scheduler_of(None, None, clock=clock)
    steps = []
    for _ in range(27):
        with_deadline(scheduler, 1, 0.001)
        clock.now += 0.125
        step = scheduler.schedule()
        scheduler.record_step(step, ROW_S)
        steps.append(0 in seeds(step))
    assert steps == [*[False] * 8, True] * 3


def test_a_step_is_empty_while_the_time_of_some_has_run_out() -> None:
    scheduler, _ = scheduler_of(None, None)
    scheduler.running[0].step = 1
    with_deadline(scheduler, 0, -1.0)
    assert scheduler.schedule() == ScheduledStep((), is_urgent=True, is_all=False)
    scheduler.remove(scheduler.running[0])
    assert seeds(scheduler.schedule()) == [1]


def test_urgent_ones_are_admitted_without_the_others() -> None:
    scheduler, waiting = scheduler_of(None)
    for seed, budget_s in enumerate((3600.0, None, 0.004, 0.002), 1):
        push(waiting, seed, budget_s)
    assert seeds(scheduler.admit()) == [4, 3]
    assert len(waiting) == 2


def test_no_more_are_admitted_than_rows_are_free_and_a_row_is_free_again() -> None:
    scheduler, waiting = scheduler_of(*[None] * 15)
    for seed in (15, 16, 17):
        push(waiting, seed)
    assert seeds(scheduler.admit()) == [15]
    assert scheduler.admit() == []
    gone = scheduler.running[3]
    scheduler.remove(gone)
    (admitted,) = scheduler.admit()
    assert admitted.row == gone.row


def test_a_sequence_too_long_for_the_cache_and_those_behind_it_wait() -> None:
    scheduler, waiting = scheduler_of(None)
    push(waiting, 1, total_tokens=65)
    push(waiting, 2)
    assert scheduler.admit() == []
    assert len(waiting) == 2


def test_several_engines_share_what_waits() -> None:
    waiting: PriorityQueue[DraftSequence] = PriorityQueue()
    engines = [Scheduler(waiting, 8, 64, True, num_engines=2) for _ in range(2)]
    for seed in range(8):
        push(waiting, seed)
    assert seeds(engines[0].admit()) == [0, 1, 2, 3]
    assert seeds(engines[1].admit()) == [4, 5]
