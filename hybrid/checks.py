"""What an answer must satisfy, whoever wrote it: named checks that a request carries.

A check looks at text alone. One that raises or takes too long has failed, and says so: it never
stops the answer. A regular expression runs inside the interpreter and cannot be cut short.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Thread

from hybrid.errors import RequestError, did_you_mean
from hybrid.types import Check, CheckOutcome

FunctionCheck = Callable[[str], bool | str]

TIME_LIMIT_S = 1.0
_LONGEST_UNIT, _LEAST_REPEATED = 80, 16  # characters


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

    pattern: re.Pattern[str]

    @property
    def name(self) -> str:
        """See `Check.name`."""
        return f"regex {self.pattern.pattern!r}"

    def problem(self, text: str) -> str | None:
        """See `Check.problem`."""
        return None if self.pattern.search(text) else "no match"


@dataclass(frozen=True, slots=True)
class IsJson:
    """The text is JSON, and valid under `schema` (JSON Schema) if one is given."""

    schema: Mapping[str, object] | None = None

    @property
    def name(self) -> str:
        """See `Check.name`."""
        return "json" if self.schema is None else "json schema"

    def problem(self, text: str) -> str | None:
        """See `Check.problem`."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            return f"not JSON: {error}"
        if self.schema is None:
            return None
        from jsonschema import Draft202012Validator

        found = next(Draft202012Validator(self.schema).iter_errors(value), None)
        return None if found is None else f"{found.json_path}: {found.message}"


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
        """See `Check.problem`; short runs such as "ha ha ha ha" pass."""
        for match in re.finditer(rf"(.{{1,{_LONGEST_UNIT}}}?)\1{{{self.times - 1},}}", text, re.S):
            if len(match[0]) >= _LEAST_REPEATED and not match[0].isspace():
                return f"{match[1]!r} {len(match[0]) // len(match[1])} times in a row"
        return None


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
        return Matches(re.compile(value))
    except re.error as error:
        raise RequestError("checks.regex", value, f"a regular expression ({error})") from None


def _json(value: object) -> Check:
    if value is True:
        return IsJson()
    if not isinstance(value, Mapping):
        raise RequestError("checks.json", value, "true, or a JSON Schema")
    try:
        from jsonschema import Draft202012Validator, SchemaError
    except ModuleNotFoundError:
        needs = "true; a schema needs the jsonschema package: pip install 'hybrid-gemma[checks]'"
        raise RequestError("checks.json", "a schema", needs) from None
    try:
        Draft202012Validator.check_schema(value)
    except SchemaError as error:
        raise RequestError("checks.json", value, f"a JSON Schema ({error.message})") from None
    return IsJson(value)


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
