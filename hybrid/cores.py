"""Which of the processor's cores this process may use, and which its workers."""

import os
from collections.abc import Sequence


def given_cores() -> list[int]:
    """The cores that the system gives this process and those that it starts."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def available_cores() -> int:
    """How many of them this process works with: all, or fewer if OMP_NUM_THREADS says so.

    torch reads the same variable; so one setting holds for both.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    given = len(given_cores())
    return min(given, int(wanted)) if wanted.isdecimal() and int(wanted) else given


def share_of(cores: Sequence[int], number: int, count: int) -> Sequence[int]:
    """The cores of one of `count` processes that divide them; at least one, if need be shared."""
    each = max(1, len(cores) // count)
    first = number * each % (len(cores) - each + 1)
    return cores[first : first + each]
