"""What an answer must satisfy, whoever wrote it: named checks that a request carries.

A check looks at text alone, does no I/O, and takes time linear in the text, but for functions of
the caller's own. One that raises or takes too long has failed, and says so: it never stops the
answer.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Thread

from hybrid.errors import RequestError, did_you_mean
from hybrid.json_schema import MAX_DEPTH, Schema, depth_problem
from hybrid.patterns import Pattern
from hybrid.repetition import find_repetition
from hybrid.types import Check, CheckOutcome

FunctionCheck = Callable[[str], bool | str]

TIME_LIMIT_S = 1.0
MAX_CHECKS = 32  # of a request


@dataclass(frozen=True, slots=True)
class Contains:
    """The text has this in it, letter for letter."""

    wanted: str

    @property
    def name(self) -> str:
        """See `Check.name`."""
        return f"contains {self.wanted!r}"

    def problem(self, text: str) -> str | None:
        """See `Check.problem`."""
        return None if self.wanted in text else f"{self.wanted!r} is missing"


@dataclass(frozen=True, slots=True)
class Matches:
    """The pattern matches somewhere in the text; anchor it with ^ and $ to cover all of it."""

    pattern: Pattern

    @property
    def name(self) -> str:
        """See `Check.name`."""
        return f"regex {self.pattern.text!r}"

    def problem(self, text: str) -> str | None:
        """See `Check.problem`."""
        return None if self.pattern.matches(text) else "no match"


@dataclass(frozen=True, slots=True)
class IsJson:
    """The text is JSON (RFC 8259: no NaN), and valid under `schema` if one is given."""

    schema: Schema | None = None

    @property
    def name(self) -> str:
        """See `Check.name`."""
        return "json" if self.schema is None else "json schema"

    def problem(self, text: str) -> str | None:
        """See `Check.problem`."""
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
        except ValueError as error:
            return f"not JSON: {error}"
        except RecursionError:
            return f"not JSON that is read: nested deeper than {MAX_DEPTH} levels"
        if problem := depth_problem(value):
            return problem
        return None if self.schema is None else self.schema.problem(value)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value")


@dataclass(frozen=True, slots=True)
class HasLength:
    """The text has from `least` to `most` characters."""

    least: int = 0
    most: int | None = None

    @property
    def name(self) -> str:
        """See `Check.name`."""
        return f"length {self.least} to {'any' if self.most is None else self.most}"

    def problem(self, text: str) -> str | None:
        """See `Check.problem`."""
        fits = self.least <= len(text) and (self.most is None or len(text) <= self.most)
        return None if fits else f"{len(text)} characters"


@dataclass(frozen=True, slots=True)
class DoesNotRepeat:
    """Nothing is said `times` times in a row, in any language: a sign of a model gone astray."""

    times: int = 4

    @property
    def name(self) -> str:
        """See `Check.name`."""
        return "repetition"

    def problem(self, text: str) -> str | None:
        """See `Check.problem`; what counts as repetition is in `hybrid.repetition`."""
        run = find_repetition(text, self.times)
        return None if run is None else f"{run.unit!r} {run.times} times in a row"


@dataclass(frozen=True, slots=True)
class Satisfies:
    """A function of yours: True is good; False, or a text that says why, is not."""

    function: FunctionCheck
    time_limit_s: float = TIME_LIMIT_S

    @property
    def name(self) -> str:
        """See `Check.name`."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def problem(self, text: str) -> str | None:
        """See `Check.problem`; it runs in a thread of its own, left behind if it takes too long."""
        said: list[bool | str] = []
        raised: list[Exception] = []

        def run() -> None:
            try:
                said.append(self.function(text))
            except Exception as error:
                raised.append(error)

        thread = Thread(target=run, name="hybrid-check", daemon=True)
        thread.start()
        thread.join(self.time_limit_s)
        if raised:
            raise raised[0]
        if not said:
            return f"took more than {self.time_limit_s:g} s"
        return None if said[0] is True else (said[0] or "not satisfied")


def examine(checks: Sequence[Check], text: str) -> tuple[CheckOutcome, ...]:
    """What every check makes of a text."""
    return tuple(CheckOutcome(check.name, _problem(check, text)) for check in checks)


def failed_names(outcomes: Sequence[CheckOutcome]) -> tuple[str, ...]:
    """The checks that failed."""
    return tuple(outcome.name for outcome in outcomes if not outcome.passed)


def _problem(check: Check, text: str) -> str | None:
    try:
        return check.problem(text)
    except Exception as error:  # whatever a caller's function raises
        return f"raised {type(error).__name__}: {error}"


def read_check(given: object) -> Check:
    """A check as callers write one: a function, or `{"contains": "x"}`, `{"regex": "^[0-9]+$"}`,
    `{"json": True}` or a schema, `{"length": {"least": 1, "most": 80}}`, `{"repetition": 4}`.
    """
    if isinstance(given, Check):
        return given
    if callable(given):
        return Satisfies(given)
    if not isinstance(given, Mapping) or len(given) != 1:
        allowed = f"a function, or an object with one of {', '.join(_KINDS)}"
        raise RequestError("checks", given, allowed)
    ((kind, value),) = given.items()
    if kind not in _KINDS:
        hint = did_you_mean(str(kind), _KINDS)
        raise RequestError("checks", kind, f"one of {', '.join(_KINDS)}{hint}")
    return _KINDS[kind](value)


def _contains(value: object) -> Check:
    if not isinstance(value, str) or not value:
        raise RequestError("checks.contains", value, "a text")
    return Contains(value)


def _regex(value: object) -> Check:
    if not isinstance(value, str):
        raise RequestError("checks.regex", value, "a regular expression")
    try:
        return Matches(Pattern(value))
    except ValueError as error:
        allowed = f"a regular expression in RE2's syntax ({error})"
        raise RequestError("checks.regex", value, allowed) from None


def _json(value: object) -> Check:
    if value is True:
        return IsJson()
    if not isinstance(value, Mapping):
        raise RequestError("checks.json", value, "true, or a JSON Schema")
    try:
        return IsJson(Schema(value))
    except ValueError as error:
        raise RequestError("checks.json", value, f"a JSON Schema ({error})") from None


def _length(value: object) -> Check:
    allowed = "least and most characters, whole numbers with least <= most"
    if not isinstance(value, Mapping) or not value or not value.keys() <= {"least", "most"}:
        raise RequestError("checks.length", value, allowed)
    least, most = value.get("least", 0), value.get("most")
    numbers = [number for number in (least, most) if number is not None]
    are_counts = all(type(number) is int and number >= 0 for number in numbers)
    if not are_counts or numbers != sorted(numbers):
        raise RequestError("checks.length", value, allowed)
    return HasLength(least, most)


def _repetition(value: object) -> Check:
    if type(value) is not int or value < 2:
        raise RequestError("checks.repetition", value, "a whole number from 2 up")
    return DoesNotRepeat(value)


_KINDS: Mapping[str, Callable[[object], Check]] = {
    "contains": _contains,
    "regex": _regex,
    "json": _json,
    "length": _length,
    "repetition": _repetition,
}
