"""Where a text says the same thing again and again, in time linear in its length.

Tables, rulers, numbers and lists of equal values repeat as well, and are not faults: how long a
run must be to count depends on what it repeats.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_PERIOD = 80  # characters of what is repeated
_LEAST_WORDS = 16  # characters of a run that repeats words; "ha ha ha ha" is shorter
_LEAST_LETTER = 40  # of one that repeats a single letter, as in "noooooo" and "A A A A A"
_LEAST_SIGNS = 400  # of one without words: rulers, table borders, digits, dots, emoji
_VALUES_FACTOR = 4  # times as many repetitions are needed of a list's value: "true, true, ..."
_NOT_WORDS = re.compile(r"<[^<>\s]{1,40}>|&#?\w{1,10};|[\d_]")
_HEXADECIMAL = re.compile(r"0[xX][0-9a-fA-F]+")
_SEPARATORS = re.compile(r"[|,;:\t]")


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of text that is `unit`, `times` times in a row."""

    unit: str
    times: int


def find_repetition(text: str, times: int) -> Run | None:
    """A run that says something at least `times` times, if there is one; shortest units first."""
    text = _HEXADECIMAL.sub(lambda number: "0" * len(number[0]), text)
    for unit, length in _runs(text, times):
        if _counts(unit, length, times):
            return Run(unit.strip(), length // len(unit))
    return None


def _runs(text: str, times: int) -> Iterator[tuple[str, int]]:
    """The unit and the length, in characters, of every run that some rule might count.

    A run of period p is where every character equals the one p characters before it.
    """
    import numpy as np  # not for a request without such a check, nor for `hybrid run --help`

    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    for period in range(1, min(MAX_PERIOD, len(text) // times) + 1):
        breaks = np.flatnonzero(characters[period:] != characters[:-period])
        edges = np.concatenate(([-1], breaks, [len(text) - period]))
        lengths = np.diff(edges) - 1 + period
        for at in np.flatnonzero(lengths >= max(times * period, _LEAST_WORDS)):
            start = int(edges[at]) + 1
            unit = text[start : start + period]
            if (unit + unit).find(unit, 1) == period:  # the unit is not a repetition itself
                yield unit, int(lengths[at])


def _counts(unit: str, length: int, times: int) -> bool:
    """Whether a run of `length` characters is a fault rather than a table, a number or a list."""
    if unit.isspace():
        return False
    words = set(_NOT_WORDS.sub(" ", _from_boundary(unit)).split())
    words = {word for word in (_letters(word) for word in words) if word}
    if not words:
        return length >= _LEAST_SIGNS
    if max(map(len, words)) == 1:
        return length >= _LEAST_LETTER
    if len(words) == 1 and _SEPARATORS.search(unit):
        return length >= _VALUES_FACTOR * times * len(unit)
    return True


def _from_boundary(unit: str) -> str:
    """The unit, begun where no tag, entity or word is cut in two."""
    for boundary in (r"<", r"&", r"\W"):
        if found := re.search(boundary, unit):
            return unit[found.start() :] + unit[: found.start()]
    return unit


def _letters(word: str) -> str:
    return "".join(filter(str.isalpha, word))
