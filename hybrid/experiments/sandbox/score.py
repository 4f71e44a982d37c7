"""Scorers of reasoning-gym in a confined process, which is started once and kept.

Some of them evaluate an answer as Python expressions, so they must not run in this process.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from hybrid.experiments.sandbox.confine import confine

SECONDS = 10  # of wall clock for one answer
_CPU_SECONDS, _MEMORY = 24 * 3600, 4 << 30  # numpy alone reserves gigabytes that it does not use
_START_S = 120  # the package takes seconds to import
_MAX_REPLY = 1 << 16
_ROOT = Path(__file__).parents[3]  # the folder of the package hybrid
_CODE = "import sys; sys.path.insert(0, {!r}); from {} import main; main()"


class ConfinedScorer:
    """Scores answers one after the other; a process that dies or takes too long is replaced."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process: subprocess.Popen[bytes] | None = None

    def score(self, dataset: str, entry: Mapping[str, Any], answer: str) -> float:
        """The dataset's own score; raises ValueError where the scorer raises, dies or hangs."""
        line = json.dumps([dataset, entry, answer]).encode() + b"\n"
        with self._lock:
            try:
                process = self._running()
                assert process.stdin is not None
                process.stdin.write(line)
                process.stdin.flush()
                reply = json.loads(self._reply(process, SECONDS))
            except (OSError, ValueError) as error:
                self.close()
                raise ValueError(f"reasoning-gym's scorer of {dataset} failed: {error}") from None
        if isinstance(reply, str):
            raise ValueError(reply)
        return float(reply)

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(OSError):  # what was not sent
                process.communicate()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _CODE.format(str(_ROOT), __name__)],
                cwd=self._folder.name,
                env={},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._reply(self._process, _START_S)
        return self._process

    def _reply(self, process: "subprocess.Popen[bytes]", seconds: float) -> bytes:
        """One line; raises ValueError if none comes in time."""
        assert process.stdout is not None
        end, found = time.monotonic() + seconds, b""
        while not found.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
            part = os.read(process.stdout.fileno(), _MAX_REPLY) if ready else b""
            if not part or len(found) > _MAX_REPLY:
                raise ValueError("no reply" if ready else f"no reply in {seconds:.0f} s")
            found += part
        return found


def main() -> None:
    """The process: scores what it is sent, until there is no more."""
    from reasoning_gym import factory

    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whatever scorers print
    confine(Path.cwd(), _CPU_SECONDS, _MEMORY)
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        dataset, entry, answer = json.loads(line)
        try:
            found: float | str = float(factory.get_score_answer_fn(dataset)(answer, entry))
        except Exception as error:  # of a scorer, about whatever a model wrote
            found = f"{type(error).__name__}: {error}"[:500]
        print(json.dumps(found), file=replies, flush=True)
