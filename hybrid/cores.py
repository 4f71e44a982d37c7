"""How many of the processor's cores this process may use."""

import os


def available_cores() -> int:
    """The cores that the system gives this process, or fewer if OMP_NUM_THREADS says so.

    torch reads the same variable; so one setting holds for both.
    """
    given = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    cores = given or 1
    return min(cores, int(wanted)) if wanted.isdecimal() and int(wanted) else cores
