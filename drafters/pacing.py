"""Which rows of a batch take the next step together.

All of them, as a rule: that is the most a second. But a step cannot be interrupted, and on a CPU it
takes as long as it has rows. So rows without time go by themselves, and as long as budgets are
short the others go in turns, lest the next short one come too late to its only step.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hybrid.deadline import Deadline
from hybrid.turns import PATIENCE_S

_SHARE = 0.2  # of the shortest budget, for one step
_REMEMBERED = 64  # budgets
_FEWEST = 2  # rows in turns: 1.9 ms each where 8 take 1.6 and 1 takes 2.7 (embedded pair)


@dataclass(frozen=True, slots=True)
class Turn:
    """The rows that take a step: those without time, or `is_all` of them, or the next in turn."""

    rows: Sequence[int]
    is_urgent: bool
    is_all: bool


class Pacing:
    """What steps and budgets have lately been; `in_turns` where a row more makes a step longer."""

    def __init__(self, in_turns: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._in_turns, self._clock = in_turns, clock
        self._row_s = 0.0  # of the last step of many, or of reading prompts before there is one
        self._budgets_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._since: dict[int, float] = {}  # each row's last turn

    def joined(self, deadlines: Mapping[int, Deadline], seconds: float) -> None:
        """Rows came with these deadlines, and it took so long to read their prompts."""
        self._budgets_s.extend(deadline.remaining_s for deadline in deadlines.values())
        self._since |= dict.fromkeys(deadlines, self._clock())
        self._row_s = self._row_s or seconds / len(deadlines)

    def is_urgent(self, deadline: Deadline, rows: int) -> bool:
        """Whether a deadline cannot wait for a step of so many rows."""
        return deadline.remaining_s < 2 * rows * self._row_s

    def choose(self, deadlines: Mapping[int, Deadline]) -> Turn:
        """Who takes the next step, of rows with these deadlines; who waits longest comes first."""
        waiting, now = list(deadlines), self._clock()
        urgent = [
            row
            for row in waiting
            if self.is_urgent(deadlines[row], len(waiting)) or now > self._since[row] + PATIENCE_S
        ]
        rows = urgent or waiting[: self._most(len(waiting))]
        return Turn(rows, bool(urgent), len(rows) == len(waiting))

    def stepped(self, turn: Turn, seconds: float) -> None:
        """These rows took a step."""
        self._since |= dict.fromkeys(turn.rows, self._clock())
        if turn.is_all or not turn.is_urgent:
            self._row_s = seconds / len(turn.rows)

    def _most(self, rows: int) -> int:
        if not self._in_turns or not self._row_s:
            return rows
        return max(_FEWEST, int(min(rows, _SHARE * min(self._budgets_s) / self._row_s)))
