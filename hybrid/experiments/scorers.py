"""How an answer is judged against its reference: 1 is right, 0 is wrong, some are in between.

A scorer that raises has not said that the answer is wrong: the record says what it raised, and the
item counts for nothing.
"""

import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import cast

from hybrid.errors import RequestError, did_you_mean

Scorer = Callable[[str, str, str], float]  # prompt, reference, text

EMBEDDED, LIKELIHOOD = "embedded", "likelihood"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?")
_CODE_SECONDS = 5
_LIMITED = f"""
import resource as r, sys
limits = {{r.RLIMIT_CPU: {_CODE_SECONDS}, r.RLIMIT_AS: 512 << 20, r.RLIMIT_FSIZE: 1 << 20}}
for limit, most in limits.items():
    r.setrlimit(limit, (most, most))
exec(compile(sys.stdin.read(), "answer", "exec"), {{"__name__": "__main__"}})
"""


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
        return float(json.loads(text) == wanted)
    except ValueError:
        return 0.0


def regex(prompt: str, reference: str, text: str) -> float:
    """The reference, a regular expression, matches somewhere in the text."""
    return float(re.search(reference, text) is not None)


def chrf(prompt: str, reference: str, text: str) -> float:
    """chrF of sacrebleu (Popovic 2015), from 0 to 1: overlap of character n-grams."""
    from sacrebleu.metrics import CHRF

    return float(CHRF().sentence_score(text, [reference]).score) / 100


def code(prompt: str, reference: str, text: str) -> float:
    """Python: the text, then the reference's assertions, run to their end within limits.

    In a process of its own with 5 s, 512 MB, no files but in a folder of its own and no inherited
    environment. A limit, not a prison: do not score code that wants to do harm.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", _LIMITED],
                cwd=folder,
                env={},
                input=f"{text}\n{reference}\n".encode(),
                capture_output=True,
                timeout=_CODE_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return 0.0
    return float(done.returncode == 0)


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
