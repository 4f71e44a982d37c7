"""Every error that a caller can meet, in one tree.

    HybridError
    |- RequestError       a field of the request is wrong: what was given, what is allowed
    |- PolicyError        a policy file is wrong: every problem with file, line, column and key
    |- CheckpointError    a model folder is wrong: file, tensor, what was expected and found
    |- BackendError       a drafter or refiner failed at a stage; says whether a retry can help
    |  `- Overloaded      the request would not be answered in its budget; says when to try again
    |- CapabilityError    this machine or backend cannot do what was asked
    |- DeadlineExceeded   the budget ran out with no answer, or with one that the policy forbids
    `- Cancelled          the caller went away

Anything else that escapes is a bug in hybrid.
"""

import difflib
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass

_REPR = reprlib.Repr()  # of a value that may be of any size
_REPR.maxstring = _REPR.maxother = 200
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 20


class HybridError(Exception):
    """Base of all errors that hybrid raises on purpose."""

    def __reduce__(self) -> tuple[object, ...]:
        # Exception's own would call __init__ with the message, which here takes its parts.
        return _again, (type(self), self.args, self.__dict__)


class RequestError(HybridError):
    """A request that cannot be answered as asked; nothing was run."""

    def __init__(self, field: str, given: object, allowed: str) -> None:
        super().__init__(f"{field}: {_REPR.repr(given)} is not allowed; {allowed}")
        self.field, self.given, self.allowed = field, given, allowed


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a policy file; `line` and `column` count from 1, 0 if unknown."""

    file: str
    line: int
    column: int
    key: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{where}: {self.key}: {self.message}" if self.key else f"{where}: {self.message}"


class PolicyError(HybridError):
    """A policy that does not say what it must; carries every problem found, not the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class CheckpointError(HybridError):
    """A model folder that cannot be loaded."""

    def __init__(self, file: str, message: str, tensor: str | None = None) -> None:
        super().__init__(f"{file}: {tensor}: {message}" if tensor else f"{file}: {message}")
        self.file, self.tensor = file, tensor


class BackendError(HybridError):
    """A drafter or refiner that failed while working (`stage`: load, draft, score, continue)."""

    def __init__(self, stage: str, message: str, retryable: bool = False) -> None:
        super().__init__(f"{stage}: {message}")
        self.stage, self.retryable = stage, retryable


class Overloaded(BackendError):
    """A request that was refused at once, because it or others would not be answered in time.

    `predicted_wait_s` is how long it would have waited for others; after `retry_after_s` it would
    be let in if nobody else came.
    """

    def __init__(self, predicted_wait_s: float, retry_after_s: float, in_flight: int) -> None:
        message = (
            f"{in_flight} requests are being answered, and one more would be late: it would wait "
            f"{predicted_wait_s:.2f} s for them; try again in {retry_after_s:.2f} s"
        )
        super().__init__("queue", message, retryable=True)
        self.predicted_wait_s, self.retry_after_s = predicted_wait_s, retry_after_s
        self.in_flight = in_flight


class CapabilityError(HybridError):
    """Something that this device or backend does not do."""

    def __init__(self, operation: str, device: str, missing: str) -> None:
        super().__init__(f"{operation} on {device}: {missing}")
        self.operation, self.device, self.missing = operation, device, missing


class DeadlineExceeded(HybridError):
    """The budget ran out: with no answer at all, or the policy says `on_deadline: fail`."""


class Cancelled(HybridError):
    """The caller cancelled; the work stopped at the next denoising step or token."""


def _again(
    kind: type[HybridError], arguments: tuple[object, ...], state: dict[str, object]
) -> HybridError:
    """An error that was pickled."""
    error = kind.__new__(kind)
    error.args = arguments
    error.__dict__.update(state)
    return error


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """'; did you mean X?' for the allowed word nearest to `given`, or nothing."""
    nearest = difflib.get_close_matches(given, list(allowed), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
