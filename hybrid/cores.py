"""Which of the processor's cores this process may use."""

import os
from collections.abc import Sequence


def usable_cores() -> list[int]:
    """The cores that the system gives this process, or as many of them as OMP_NUM_THREADS says.

    torch reads the same variable; so one setting holds for both.
    """
    known = hasattr(os, "sched_getaffinity")
    given = sorted(os.sched_getaffinity(0)) if known else list(range(os.cpu_count() or 1))
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return given[: int(wanted)] if wanted.isdecimal() and int(wanted) else given


def available_cores() -> int:
    """How many there are."""
    return len(usable_cores())


def share_of(cores: Sequence[int], number: int, count: int) -> Sequence[int]:
    """The cores of one of `count` processes that divide them; at least one, if need be shared."""
    each = max(1, len(cores) // count)
    first = number * each % (len(cores) - each + 1)
    return cores[first : first + each]
