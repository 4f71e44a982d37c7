"""Which rows of a batch take a step together."""

from hybrid.deadline import Deadline
from hybrid.drafters.pacing import Pacing

ROW_S = 0.002


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def pacing(*budgets_s: float | None, in_turns: bool = True, clock: Clock | None = None) -> Pacing:
    """A batch whose rows 0, 1, ... came with these budgets and take ROW_S each."""
    made = Pacing(in_turns, clock or Clock())
    deadlines = {row: Deadline.after(budget) for row, budget in enumerate(budgets_s)}
    made.joined(deadlines, seconds=ROW_S * len(budgets_s))
    return made


def far(*rows: int) -> dict[int, Deadline]:
    return {row: Deadline() for row in rows}


def test_all_step_together_while_there_is_time() -> None:
    turn = pacing(*[None] * 8).choose(far(*range(8)))
    assert (turn.rows, turn.is_urgent, turn.is_all) == ([*range(8)], False, True)


def test_rows_without_time_go_by_themselves() -> None:
    rows = far(0, 1, 2) | {3: Deadline.after(0.001), 4: Deadline.after(0.002)}
    turn = pacing(*[None] * 5).choose(rows)
    assert (turn.rows, turn.is_urgent, turn.is_all) == ([3, 4], True, False)


def test_a_short_budget_makes_the_others_go_in_turns() -> None:
    one = pacing(*[None] * 7, 0.035)  # of which a fifth is three rows' step
    turn = one.choose(far(*range(8)))
    assert (turn.rows, turn.is_urgent, turn.is_all) == ([0, 1, 2], False, False)
    for _ in range(64):  # such budgets as come from now on
        one.joined(far(8), ROW_S)
    assert one.choose(far(*range(8))).is_all


def test_at_least_two_go_together() -> None:
    assert pacing(*[None] * 3, 0.0001).choose(far(*range(4))).rows == [0, 1]


def test_nobody_takes_turns_where_a_row_more_costs_nothing() -> None:
    assert pacing(*[None] * 7, 0.030, in_turns=False).choose(far(*range(8))).is_all


def test_what_a_row_takes_is_learned_from_steps_of_many() -> None:
    one = pacing(*[None] * 4)
    one.stepped(one.choose(far(*range(4))), seconds=4 * 0.010)
    assert one.is_urgent(Deadline.after(0.070), rows=4)
    hurried = one.choose(far(1, 2, 3) | {0: Deadline.after(0.001)})
    one.stepped(hurried, seconds=0.3)  # alone, which tells nothing of the others
    assert not one.is_urgent(Deadline.after(0.090), rows=4)


def test_those_in_a_hurry_make_nobody_wait_for_more_than_a_second() -> None:
    clock = Clock()
    one = pacing(None, None, clock=clock)
    rows = {0: Deadline(), 1: Deadline.after(0.001)}
    turns = []
    for _ in range(27):
        clock.now += 0.125
        turn = one.choose(rows)
        one.stepped(turn, ROW_S)
        turns.append(0 in turn.rows)
    assert turns == [*[False] * 8, True] * 3
