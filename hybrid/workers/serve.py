"""What runs in a worker process: `python -m hybrid.workers.serve`.

It reads pickled messages from its input and writes pickled replies to its output, until its input
ends; whatever else prints goes to its standard error. Ctrl-C is the business of whoever started it.
"""

import os
import pickle
import signal
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import BinaryIO

from hybrid.deadline import CancelFlag
from hybrid.errors import BackendError, HybridError
from hybrid.local import Local
from hybrid.policies.schema import Policy
from hybrid.types import Event, Finished, Request
from hybrid.workers.messages import Answer, Cancel, Explain, Load, Message, unpickled

_THREADS = 256


class Worker:
    """Answers questions, each in a thread of its own."""

    def __init__(self, outbox: BinaryIO) -> None:
        self._outbox = outbox
        self._local: Local | None = None
        self._policy: Policy | None = None
        self._cancelled: dict[int, CancelFlag] = {}
        self._sending = Lock()
        self._threads = ThreadPoolExecutor(_THREADS)

    def take(self, message: Message) -> None:
        """Begin to answer; returns at once."""
        number, question = message.number, message.question
        self._policy = message.policy or self._policy
        if isinstance(question, Cancel):
            if (flag := self._cancelled.get(number)) is not None:
                flag.set()
            return
        assert self._policy is not None
        flag = self._cancelled[number] = CancelFlag()
        self._threads.submit(self._reply, number, question, self._policy, flag)

    def close(self) -> None:
        """End what was begun, and keep what was learned."""
        self._threads.shutdown()
        if self._local is not None:
            self._local.close()

    def _reply(
        self, number: int, question: Answer | Explain | Load, policy: Policy, flag: CancelFlag
    ) -> None:
        try:
            reply = self._outcome(number, question, policy, flag)
        except HybridError as error:
            reply = error
        except Exception as error:
            reply = BackendError("worker", f"{type(error).__name__}: {error}")
            reply.add_note(traceback.format_exc())
        del self._cancelled[number]
        self._send(number, reply)
        if isinstance(reply, BackendError) and reply.stage == "device":
            os._exit(1)  # a device that failed works again in a new process only

    def _outcome(
        self, number: int, question: Answer | Explain | Load, policy: Policy, flag: CancelFlag
    ) -> object:
        if isinstance(question, Load):
            self._local = self._local or Local(unpickled("signals and rule", question.custom))
            return self._local.load(policy)
        assert self._local is not None
        request: Request = unpickled("checks", question.request)
        if isinstance(question, Explain):
            return self._local.explain(request, policy)

        def emit(event: Event) -> None:
            if not isinstance(event, Finished):  # its result is the reply
                self._send(number, event)

        listener = emit if question.with_events else None
        return self._local.answer(request, policy, listener, flag, question.started)

    def _send(self, number: int, reply: object) -> None:
        with self._sending:
            try:
                pickle.dump((number, reply), self._outbox, pickle.HIGHEST_PROTOCOL)
                self._outbox.flush()
            except BrokenPipeError:  # whoever asked has died
                os._exit(1)


def main() -> None:
    """Work until the input ends; the arguments are where functions of the caller's are found."""
    sys.path += [path for path in sys.argv[1:] if path not in sys.path]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    outbox = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    worker = Worker(outbox)
    with suppress(EOFError):
        while True:
            worker.take(pickle.load(sys.stdin.buffer))
    worker.close()


if __name__ == "__main__":
    main()
