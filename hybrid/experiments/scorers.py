"""Scorers compare an answer with its reference: 1 is right, 0 is wrong, some are in between.

A scorer that raises has not found the answer wrong: the record has the error, and the answer is
left out of all results.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import cast

from hybrid.errors import RequestError, did_you_mean
from hybrid.experiments.sandbox.run import run_code
from hybrid.patterns import Pattern

Scorer = Callable[[str, str, str], float]  # prompt, reference, text

EMBEDDED, LIKELIHOOD = "embedded", "likelihood"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?")


def exact(prompt: str, reference: str, text: str) -> float:
    """The same text, but for white space at its ends and its amount between words."""
    return float(text.split() == reference.split())


def contains(prompt: str, reference: str, text: str) -> float:
    """The reference stands somewhere in the text."""
    return float(reference in text)


def numeric(prompt: str, reference: str, text: str) -> float:
    """The last number of the text is the reference's last number."""
    wanted, given = _NUMBER.findall(reference), _NUMBER.findall(text)
    if not wanted:
        raise ValueError(f"the reference {reference!r} has no number")
    if not given:
        return 0.0
    one, other = (float(found[-1].replace(",", "")) for found in (wanted, given))
    return float(math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9))


def json_equal(prompt: str, reference: str, text: str) -> float:
    """The same JSON value, whatever its layout and the order of its keys."""
    wanted = json.loads(reference)
    try:
        return float(_is_same(json.loads(text), wanted))
    except (ValueError, RecursionError):
        return 0.0


def _is_same(one: object, other: object) -> bool:
    """Equality of JSON values: 1.0 is 1, and true is neither."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return one == other


def regex(prompt: str, reference: str, text: str) -> float:
    """The reference, a regular expression (RE2's syntax, linear time), matches in the text."""
    return float(Pattern(reference).matches(text))


def chrf(prompt: str, reference: str, text: str) -> float:
    """chrF of sacrebleu (Popovic 2015), from 0 to 1: overlap of character n-grams."""
    from sacrebleu.metrics import CHRF

    return float(CHRF().sentence_score(text, [reference]).score) / 100


def code(prompt: str, reference: str, text: str) -> float:
    """Python: the text runs to its end, and then the reference's assertions to theirs.

    Both run in processes of their own, the assertions where no code of the text does; see
    `hybrid.experiments.sandbox`. Limits: 5 s, 512 MB each, 8 MB of files in an empty folder without
    folders in it, no environment, output thrown away. On Linux (Landlock and seccomp) there is no
    network, no other process, no program to start and no other file than Python's own; elsewhere
    they are open: `hybrid.experiments.sandbox.confine.missing` says what is.
    """
    return float(run_code(text, reference))


def embedded(prompt: str, reference: str, text: str) -> float:
    """The exact checker of the embedded task that the prompt belongs to."""
    from hybrid.embedded.tasks import TASKS, recognise

    task = recognise(prompt)
    if task is None:
        raise ValueError(f"{prompt!r} is no embedded task's prompt")
    return float(TASKS[task].check(prompt, reference, text))


SCORERS: Mapping[str, Scorer] = {
    "exact": exact,
    "contains": contains,
    "numeric": numeric,
    "json": json_equal,
    "regex": regex,
    "chrf": chrf,
    "code": code,
    EMBEDDED: embedded,
}


def check_scorer(name: object, where: str = "scorer") -> None:
    """Raise RequestError for a scorer that there is not."""
    if name == LIKELIHOOD or name in SCORERS:
        return
    if isinstance(name, str) and ":" in name:
        find_scorer(name)
        return
    known = [*SCORERS, LIKELIHOOD]
    hint = did_you_mean(str(name), known)
    raise RequestError(where, name, f"one of {known} or module:function{hint}")


def find_scorer(name: str) -> Scorer:
    """A scorer by its name, or a function of yours as module:function.

    `likelihood` is the runner's, which has the models.
    """
    if name in SCORERS:
        return SCORERS[name]
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        allowed = f"module:function that can be imported ({error})"
        raise RequestError("scorer", name, allowed) from None
    return cast(Scorer, found)
