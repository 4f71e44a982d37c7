"""Code of an answer against a reference's assertions: two confined processes and a verdict.

The answer's process knows no assertion, and the one with the assertions runs none of the answer's
code: it calls the other one. That the assertions ran to their end is what the second process says,
so nothing that an answer does in its own process can stand for it.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path

from hybrid.experiments.sandbox.check import BROKEN, PASSED

SECONDS = 5  # of wall clock for both, and of CPU time for each
_FOLDER_BYTES, _FOLDER_FILES = 8 << 20, 256
_POLL_S = 0.01
_VERDICT_BYTES = 4096
_ROOT = Path(__file__).parents[3]  # the folder of the package hybrid
_START = "import sys; sys.path.insert(0, {root!r}); from {module} import main; main({arguments})"


def run_code(text: str, reference: str, seconds: int = SECONDS) -> bool:
    """Whether the text runs to its end, and the reference's assertions after it to theirs.

    Raises ValueError if the reference is not Python, or checks nothing of the answer's.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        asked, ask, told, tell, verdict, report = (
            stack.enter_context(end) for _ in range(3) for end in _pipe()
        )
        answer = _start("answer", text, folder, [asked, tell], seconds)
        stack.callback(_end, answer)
        check = _start("check", reference, folder, [told, ask, report], seconds)
        stack.callback(_end, check)
        for end in (asked, ask, told, tell, report):
            end.close()  # so that each process sees the other's end
        if not _wait(check, folder, seconds):
            return False
        said = verdict.read(_VERDICT_BYTES).decode("utf-8", "replace")
    if said.startswith(BROKEN):
        raise ValueError(f"the reference cannot be used{said.removeprefix(BROKEN)}")
    return said == PASSED and check.returncode == 0


def _start(
    module: str, text: str, folder: Path, ends: Sequence[FileIO], seconds: int
) -> "subprocess.Popen[bytes]":
    """A Python of its own: no environment, no current folder on its path, a session of its own."""
    keep = [end.fileno() for end in ends]
    code = _START.format(
        root=str(_ROOT),
        module=f"hybrid.experiments.sandbox.{module}",
        arguments=", ".join(map(str, [*keep, seconds])),
    )
    with tempfile.TemporaryFile() as stream:
        stream.write(text.encode("utf-8", "replace"))
        stream.seek(0)
        return subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", "-c", code],
            cwd=folder,
            env={},
            stdin=stream,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=keep,
            start_new_session=True,
        )


def _wait(check: "subprocess.Popen[bytes]", folder: Path, seconds: int) -> bool:
    """Whether it ended in time, and the folder stayed small."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(subprocess.TimeoutExpired):
            check.wait(_POLL_S)
            return True
        files = list(os.scandir(folder))
        size = 0
        for file in files:
            with suppress(FileNotFoundError):
                size += file.stat(follow_symlinks=False).st_size
        if len(files) > _FOLDER_FILES or size > _FOLDER_BYTES:
            return False
    return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill it, with whatever it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # its session's first process
    process.wait()


def _pipe() -> tuple[FileIO, FileIO]:
    """The ends to read and to write."""
    read, write = os.pipe()
    return FileIO(read, "rb"), FileIO(write, "wb")
