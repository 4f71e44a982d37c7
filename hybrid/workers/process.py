"""One worker process, seen from the process that started it."""

import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any

import hybrid
from hybrid.deadline import CancelFlag
from hybrid.errors import BackendError
from hybrid.pipeline import Emit
from hybrid.policies.schema import Policy
from hybrid.types import Denoised, Drafted, Patched, Planned, Written
from hybrid.workers.messages import Answer, Cancel, Explain, Load, Message

_POLL_S = 0.05
_Passing = Planned | Denoised | Drafted | Written | Patched


class WorkerProcess:
    """One process on some of the processor's cores, and the questions it has not answered yet.

    It keeps to its cores, where the system can do that: left to move, two workers on two cores
    answered 10 % fewer requests. What this process can import it can import too, but only by names
    that the standard library and the installed packages do not have.

    `in_flight` is for whoever hands out requests to count them.
    """

    def __init__(self, cores: Sequence[int]) -> None:
        paths = [path or os.getcwd() for path in sys.path]
        package = str(Path(hybrid.__file__).absolute().parents[1])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hybrid.workers.serve", *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": str(len(cores)), "PYTHONPATH": package},
        )
        if hasattr(os, "sched_setaffinity"):
            with suppress(OSError):  # a container may forbid it: then it moves
                os.sched_setaffinity(self._process.pid, cores)
        assert self._process.stdin and self._process.stdout
        self._inbox, self._outbox = self._process.stdin, self._process.stdout
        self._numbers = itertools.count()
        self._sending, self._changing = Lock(), Lock()
        self._policy: Policy | None = None
        self._open: dict[int, SimpleQueue[Any]] = {}
        self.is_alive, self.in_flight = True, 0
        self._listener = Thread(target=self._listen, name="hybrid-worker", daemon=True)
        self._listener.start()

    def ask(
        self,
        question: Answer | Explain | Load,
        policy: Policy,
        emit: Emit | None = None,
        cancelled: CancelFlag | None = None,
    ) -> Any:
        """The reply, once it is there; raises what the worker raised."""
        number, replies = next(self._numbers), SimpleQueue[Any]()
        with self._changing:
            if not self.is_alive:
                raise _died(self._process)
            self._open[number] = replies
        has_ended = False
        try:
            self._send(number, question, policy)
            while isinstance(reply := self._next(number, replies, cancelled), _Passing):
                if emit is not None:
                    emit(reply)
            has_ended = True
        finally:
            del self._open[number]
            if not has_ended:  # Ctrl-C, or what `emit` raises
                self._send(number, Cancel())
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def close(self) -> None:
        """Let it end, and wait until it has."""
        with self._sending, suppress(OSError):
            self._inbox.close()
        self._listener.join()
        self._process.wait()

    def _next(self, number: int, replies: "SimpleQueue[Any]", cancelled: CancelFlag | None) -> Any:
        """What comes next, of a worker that is told once if the caller has gone away."""
        is_told = cancelled is None
        while True:
            try:
                return replies.get(timeout=None if is_told else _POLL_S)
            except Empty:
                if cancelled is not None and cancelled.is_set():
                    self._send(number, Cancel())
                    is_told = True

    def _send(
        self, number: int, question: Answer | Explain | Load | Cancel, policy: Policy | None = None
    ) -> None:
        """Give the worker a message; one that has died has told all who wait for it."""
        with self._sending, suppress(OSError, ValueError):
            news = None if policy is self._policy else policy
            self._inbox.write(pickle.dumps(Message(number, question, news)))
            self._inbox.flush()
            self._policy = policy or self._policy

    def _listen(self) -> None:
        """Hand replies to those who wait for them, until the process ends."""
        with suppress(EOFError, pickle.UnpicklingError):
            while True:
                number, reply = pickle.load(self._outbox)
                if (replies := self._open.get(number)) is not None:
                    replies.put(reply)
        with self._changing:
            self.is_alive = False
        for replies in [*self._open.values()]:
            replies.put(_died(self._process))


def _died(process: "subprocess.Popen[bytes]") -> BackendError:
    code = process.wait()
    message = f"the process that worked on the request has ended (exit status {code})"
    return BackendError("worker", message, retryable=True)
