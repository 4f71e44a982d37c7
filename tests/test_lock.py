"""A file that one process at a time can hold."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid.lock import lock_file

HOLDING = """
import sys, time
from pathlib import Path
from hybrid.lock import lock_file
held = lock_file(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_one_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    first = lock_file(file)
    assert first is not None and lock_file(file) is None
    first.close()
    second = lock_file(file)
    assert second is not None
    second.close()


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDING, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        assert lock_file(file) is None
        process.kill()
    held = lock_file(file)
    assert held is not None
    held.close()


def test_a_file_that_was_removed_meanwhile_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder has removed it between its opening and its locking here."""
    import fcntl

    file, flock = tmp_path / "lock", fcntl.flock
    calls: list[int] = []

    def slow(stream: object, operation: int) -> None:
        if not calls:
            file.unlink()
        calls.append(operation)
        flock(stream, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", slow)
    held = lock_file(file)
    assert held is not None and len(calls) == 2
    assert os.path.samestat(file.stat(), os.fstat(held.fileno()))
    held.close()


def test_a_file_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        lock_file(tmp_path / "missing" / "lock")
