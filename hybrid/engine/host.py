"""How much memory the system can give this process: the machine's, or its container's if less."""

from pathlib import Path

_MACHINE = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    found = [number for number in (_of_machine(), _of_container()) if number is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    return _entry(_MACHINE, "MemAvailable:", 1024)


def _of_container() -> int | None:
    """What is left of a limit, files that the system keeps in memory not counted."""
    try:
        limit = int((_GROUP / "memory.max").read_text())
        used = int((_GROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or "max"
        return None
    return limit - used + (_entry(_GROUP / "memory.stat", "inactive_file", 1) or 0)


def _entry(file: Path, name: str, unit: int) -> int | None:
    """The number after the name, in a file with one a line."""
    try:
        lines = (line.split() for line in file.read_text().splitlines())
        return next(int(words[1]) * unit for words in lines if words[0] == name)
    except (OSError, StopIteration):
        return None
