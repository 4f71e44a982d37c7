"""A chat template's work, counted and bounded: what it loops over, builds and compares.

A template comes with a model folder and may loop for ever or build gigabytes. A clock would make
the same prompt fail on a slow machine, so characters and loop turns are counted instead.
"""

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

LEAST_WORK = 1_000_000  # characters and loop turns of a template on a short conversation
WORK_PER_CHARACTER = 64  # more for each character of the conversation
_WIDEST = 10_000  # of a padding or an indentation
_LARGEST_POWER = 4096  # bits
_PADDING = ("center", "ljust", "rjust", "zfill", "expandtabs", "indent", "truncate", "batch")
_READS_ALL = ("string", "join", "format", "format_map", "sort", "unique", "groupby", "tojson")
_WIDE_FORMAT = re.compile(r"\d{5}|%[-#0 +]*\*|%[^%]*\.\*|\{[^{}]*\{")
_left: ContextVar[list[int] | None] = ContextVar("work left for a chat template", default=None)


class TemplateWorkError(Exception):
    """A template that does more than any conversation needs."""


@contextmanager
def limited_work(amount: int) -> Iterator[None]:
    """Within this context templates may do so much work; TemplateWorkError beyond it."""
    token = _left.set([amount])
    try:
        yield
    finally:
        _left.reset(token)


def spend(amount: int) -> None:
    """Count work that is about to be done, or has been."""
    left = _left.get()
    if left is not None:
        left[0] -= amount
        if left[0] < 0:
            raise TemplateWorkError("does more work than a conversation of this length needs")


def charged(value: Any) -> Any:
    """The value, its size counted, with all that is in it."""
    spend(_whole_size(value))
    return value


def charged_once(value: Any) -> Any:
    """The value, its own size counted, not that of what is in it."""
    spend(_size(value))
    return value


def counted(items: Iterable[Any]) -> Iterator[Any]:
    """The items of a loop, whose turns count."""
    for item in items:
        spend(1)
        yield item


def guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test whose arguments and result are counted, and refused where too wide."""

    @wraps(function)  # which keeps Jinja's marks of functions that want its environment
    def call(*arguments: Any, **named: Any) -> Any:
        check_arguments(name, [*arguments, *named.values()])
        return charged_once(function(*arguments, **named))

    return call


def check_arguments(name: str, values: Sequence[Any]) -> None:
    """Count what a function is given, and what it will make of it where that is far more."""
    size = _whole_size if name in _READS_ALL else _size
    for value in values:
        spend(size(value))
    texts = [value for value in values if isinstance(value, str)]
    widths = [value for value in values if type(value) is int]
    if name in _PADDING:
        if any(abs(width) > _WIDEST for width in widths):
            raise TemplateWorkError(f"{name} by {max(widths)} is more than {_WIDEST}")
        lines = sum(text.count("\n") + text.count("\t") + 1 for text in texts)
        spend(lines * max([*widths, *(len(text) for text in texts[1:]), 1]))
    elif name == "replace" and len(texts) > 2:
        found = texts[0].count(texts[1]) if texts[1] else len(texts[0]) + 1
        spend(found * len(texts[2]))
    elif name == "join":
        entries = max((len(v) for v in values if isinstance(v, list | tuple)), default=0)
        spend(entries * max(map(len, texts), default=0))
    elif name in ("format", "format_map", "%") and any(map(_WIDE_FORMAT.search, texts[:1])):
        raise TemplateWorkError("a format asks for a width of its own or of more than four digits")


def check_operation(symbol: str, left: Any, right: Any) -> None:
    """Count an arithmetic operation before it is done."""
    numbers = [value for value in (left, right) if isinstance(value, int)]
    if symbol == "*" and len(numbers) == 1:
        other = right if isinstance(left, int) else left
        spend(max(0, numbers[0]) * _size(other))
    elif symbol == "**" and len(numbers) == 2:
        if left.bit_length() * max(0, right) > _LARGEST_POWER:
            raise TemplateWorkError("a power is too large")
    elif symbol == "%" and isinstance(left, str):
        check_arguments("%", [left])
        spend(_whole_size(right))
    spend(_size(left) + _size(right))


OPERATIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "**": operator.pow,
    "%": operator.mod,
}


def _size(value: Any) -> int:
    if isinstance(value, str | bytes | list | tuple | dict | set):
        return 1 + len(value)
    return 1 + value.bit_length() // 8 if isinstance(value, int) else 1


def _whole_size(value: Any) -> int:
    """Of a value with all that is in it; counting stops where no work is left."""
    left = _left.get()
    most = left[0] if left is not None else 0
    total, waiting = 0, [value]
    while waiting and total <= most:
        one = waiting.pop()
        total += _size(one)
        if isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set):
            waiting += one
    return total
