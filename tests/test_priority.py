"""Whoever has the least time goes first, and who gives up waiting."""

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.deadline import CancelFlag, Deadline
from hybrid.errors import Cancelled
from hybrid.priority import MAX_PATIENCE_S, DeadlineSemaphore, Priority, PriorityQueue


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


@given(st.lists(st.tuples(st.sampled_from(["push", "pop", "remove"]), st.floats(0, 1))))
def test_a_queue_hands_out_the_first_of_what_is_left(steps: list[tuple[str, float]]) -> None:
    queue: PriorityQueue[Priority] = PriorityQueue()
    left: list[Priority] = []
    for number, (what, value) in enumerate(steps):
        if what == "push":
            left.append(Priority(value, number))
            queue.push(left[-1], left[-1])
        elif what == "pop" and left:
            assert queue.first == min(left)
            assert queue.pop() == min(left)
            left.remove(min(left))
        elif left:
            gone = left.pop(int(value * (len(left) - 1)))
            assert queue.remove(gone)
            assert not queue.remove(gone)
        assert len(queue) == len(left)


def test_far_deadlines_are_served_in_the_order_of_asking() -> None:
    patient = Priority.of(Deadline())
    an_hour = Priority.of(Deadline.after(3600))
    assert patient < an_hour
    assert Priority.of(Deadline.after(MAX_PATIENCE_S / 2)) < patient
    assert patient < Priority(time.monotonic() + MAX_PATIENCE_S + 0.001, 0)  # asks later than that
    assert not patient.is_due
    assert Priority.of(Deadline.after(0.0)).is_due


def test_the_least_time_gets_a_slot_first_and_equals_in_the_order_of_asking() -> None:
    semaphore, order = DeadlineSemaphore(1), list[str]()
    assert semaphore.acquire(Deadline())

    def work(name: str, deadline: Deadline) -> None:
        assert semaphore.acquire(deadline, past_deadline=True)
        order.append(name)
        semaphore.release()

    now = time.monotonic()
    asked = {"late": now + 0.9, "first": now + 0.1, "second": now + 0.1}
    threads = [threading.Thread(target=work, args=(n, Deadline(at))) for n, at in asked.items()]
    for number, thread in enumerate(threads):
        thread.start()
        wait_until(lambda number=number: semaphore.num_waiting == number + 1)  # type: ignore[misc]
    semaphore.release()
    for thread in threads:
        thread.join()
    assert order == ["first", "second", "late"]


def test_the_deadline_ends_the_wait_only_of_those_who_can_do_without() -> None:
    semaphore = DeadlineSemaphore(1)
    assert semaphore.acquire(Deadline())
    assert not semaphore.acquire(Deadline.after(0.01))
    threading.Timer(0.05, semaphore.release).start()
    assert semaphore.acquire(Deadline.after(0.01), past_deadline=True)
    assert semaphore.num_waiting == 0


def test_a_free_slot_is_not_for_the_late_who_can_do_without() -> None:
    assert not DeadlineSemaphore(1).acquire(Deadline.after(0.0))
    assert DeadlineSemaphore(1).acquire(Deadline.after(0.0), past_deadline=True)


def test_nobody_waits_once_cancelled() -> None:
    semaphore, deadline = DeadlineSemaphore(1), Deadline()
    assert semaphore.acquire(Deadline())
    threading.Timer(0.02, deadline.cancel).start()
    with pytest.raises(Cancelled):
        semaphore.acquire(deadline)
    with pytest.raises(Cancelled):
        semaphore.acquire(deadline, past_deadline=True)
    assert semaphore.num_waiting == 0
    semaphore.release()
    assert semaphore.acquire(Deadline.after(1))


def test_several_slots_are_held_at_once_and_none_is_lost() -> None:
    semaphore = DeadlineSemaphore(2)
    for _ in range(3):
        assert semaphore.acquire(Deadline.after(1)) and semaphore.acquire(Deadline.after(1))
        assert not semaphore.acquire(Deadline.after(0.01))
        semaphore.release()
        semaphore.release()


def test_a_callback_of_a_cancelled_flag_is_called_once_and_only_inside() -> None:
    flag, called = CancelFlag(), list[str]()
    with flag.calling(lambda: called.append("left before")):
        pass
    with flag.calling(lambda: called.append("inside")):
        flag.set()
        flag.set()
    with flag.calling(lambda: called.append("already set")):
        assert called == ["inside", "already set"]
