"""Child processes that compile and prove kernels, so that an abort or a sticky error ends there.

A child's module path holds this package and what is installed, never the current folder.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Timer
from types import TracebackType
from typing import IO, Self

import hybrid

_STDERR_LINES = 3


class Child:
    """`python -P -m MODULE ARGUMENTS`, which answers every line of input with a line of output."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str] = (),
        path: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        folders = [str(Path(hybrid.__file__).absolute().parents[1]), *path]
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**inherited, **(environment or {}), "PYTHONPATH": os.pathsep.join(folders)},
        )

    def ask(self, question: str, limit_s: float) -> str | None:
        """The child's answer to one line; None if it has ended, or was ended at the limit."""
        assert self._process.stdin and self._process.stdout
        self._is_late = False
        timer = Timer(limit_s, self._end)
        timer.start()
        try:
            self._process.stdin.write(question.encode() + b"\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline().decode()
        except OSError:  # a broken pipe
            answer = ""
        finally:
            timer.cancel()
        return answer.rstrip("\n") if answer.endswith("\n") else None

    def how_it_ended(self) -> str:
        """How the process ended, with the last lines that it wrote to stderr."""
        code = self._process.wait()
        if self._is_late:
            ended = "no answer within the time limit"
        elif code < 0:
            ended = f"ended by {signal.Signals(-code).name}"
        else:
            ended = f"exit status {code}"
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return ": ".join([ended, *([" | ".join(lines[-_STDERR_LINES:])] if lines else [])])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            try:
                if stream is not None:
                    stream.close()
            except OSError:
                pass

    def _end(self) -> None:
        self._is_late = True
        self._process.kill()
