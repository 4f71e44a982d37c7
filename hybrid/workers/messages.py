"""What is sent to a worker process, and how a request travels.

Requests are pickled twice, the second time as part of a message, so that one which names something
that the worker cannot import spoils nothing but itself.
"""

import pickle
from dataclasses import dataclass
from typing import Any

from hybrid.errors import RequestError
from hybrid.policies.schema import Policy

_SENDABLE = "with workers, functions must be those of a module that can be imported"


@dataclass(frozen=True, slots=True)
class Answer:
    """Asks a worker for an answer to a pickled request; `started` is when the caller asked."""

    request: bytes
    started: float
    with_events: bool


@dataclass(frozen=True, slots=True)
class Explain:
    """Asks a worker for the signals and the plan of a pickled request."""

    request: bytes


@dataclass(frozen=True, slots=True)
class Load:
    """Asks a worker to load its models; the reply says on what its predictions rest.

    `custom` is the pickled `Custom` that it answers with.
    """

    custom: bytes


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for this question's reply any more."""


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent to a worker: `number` names the question, `policy` is in force from now on if
    it is not None. Replies are pairs of the number and what there is to say.
    """

    number: int
    question: Answer | Explain | Load | Cancel
    policy: Policy | None = None


def pickled(field: str, value: object) -> bytes:
    """Raises RequestError for what cannot be sent: functions made in functions, for instance."""
    try:
        return pickle.dumps(value)
    except Exception as error:  # pickle raises many unrelated types
        raise RequestError(field, str(error), _SENDABLE) from None


def unpickled(field: str, value: bytes) -> Any:
    """Raises RequestError for what names something that cannot be imported here."""
    try:
        return pickle.loads(value)
    except Exception as error:  # whatever importing a module of the application's raises
        raise RequestError(field, str(error), _SENDABLE) from None
