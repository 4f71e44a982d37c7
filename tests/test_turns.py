"""Who gets the next turn, and who gives up."""

import threading
import time
from collections.abc import Callable

import pytest

from hybrid.deadline import Deadline
from hybrid.errors import Cancelled
from hybrid.turns import PATIENCE_S, Turns, urgency


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_the_least_time_goes_first_and_equals_in_the_order_of_asking() -> None:
    turns, order = Turns(1), list[str]()
    assert turns.take(Deadline(), is_needed=True)

    def work(name: str, deadline: Deadline) -> None:
        assert turns.take(deadline, is_needed=True)
        order.append(name)
        turns.give_back()

    now = time.monotonic()
    asked = {"late": now + 0.9, "first": now + 0.1, "second": now + 0.1}
    threads = [threading.Thread(target=work, args=(n, Deadline(at))) for n, at in asked.items()]
    for number, thread in enumerate(threads):
        thread.start()
        wait_until(lambda number=number: turns.waiting == number + 1)  # type: ignore[misc]
    turns.give_back()
    for thread in threads:
        thread.join()
    assert order == ["first", "second", "late"]


def test_the_deadline_ends_the_wait_only_of_those_who_can_do_without() -> None:
    turns = Turns(1)
    assert turns.take(Deadline(), is_needed=True)
    assert not turns.take(Deadline.after(0.01), is_needed=False)
    threading.Timer(0.05, turns.give_back).start()
    assert turns.take(Deadline.after(0.01), is_needed=True)
    assert turns.waiting == 0


def test_a_free_turn_is_not_for_the_late_who_can_do_without() -> None:
    assert not Turns(1).take(Deadline.after(0.0), is_needed=False)
    assert Turns(1).take(Deadline.after(0.0), is_needed=True)


def test_nobody_waits_once_cancelled() -> None:
    turns, deadline = Turns(1), Deadline()
    assert turns.take(Deadline(), is_needed=True)
    deadline.cancel()
    with pytest.raises(Cancelled):
        turns.take(deadline, is_needed=True)
    assert turns.waiting == 0


def test_several_turns_are_held_at_once() -> None:
    turns = Turns(2)
    assert turns.take(Deadline.after(0.01), is_needed=False)
    assert turns.take(Deadline.after(0.01), is_needed=False)
    assert not turns.take(Deadline.after(0.01), is_needed=False)


def test_the_patient_are_not_starved() -> None:
    patient = urgency(Deadline())
    an_hour = urgency(Deadline.after(3600))
    assert patient < an_hour  # by the order of asking
    assert urgency(Deadline.after(PATIENCE_S / 2)) < patient
    assert patient < (time.monotonic() + PATIENCE_S + 0.001, 0)  # who asks later than that
