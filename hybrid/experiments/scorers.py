"""Scorers compare an answer with its reference: 1 is right, 0 is wrong, some are in between.

A scorer that raises has not found the answer wrong: the record has the error, and the answer is
left out of all results.
"""

import ast
import importlib.util
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import signature
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, cast

from hybrid.errors import did_you_mean
from hybrid.experiments.sandbox.run import run_code
from hybrid.experiments.sandbox.score import ConfinedScorer
from hybrid.files import read_regular_file
from hybrid.patterns import Pattern

if TYPE_CHECKING:
    from hybrid.experiments.items import Item

Scorer = Callable[[str, str, str], float]  # prompt, reference, text
ItemScorer = Callable[["Item", str], float]  # item, text

CODE, EMBEDDED, LIKELIHOOD, REASONING_GYM = "code", "embedded", "likelihood", "reasoning_gym"
_MAX_SCORER_BYTES = 1 << 20
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
    CODE: code,
    EMBEDDED: embedded,
}


class Scorers:
    """The scorers of an experiment whose file is in `folder`: named ones, and functions of yours.

    `module:function` is a function of a file beside the experiment's (`module.py`) or of an
    installed package; neither the current folder nor the standard library is looked at.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[str, ItemScorer] = {REASONING_GYM: self._reasoning_gym}
        self._confined: ConfinedScorer | None = None
        self._lock = Lock()

    def check(self, name: str) -> None:
        """Raise ValueError for a scorer that there is not; imports and runs nothing."""
        if name in SCORERS or name == LIKELIHOOD:
            return
        if ":" not in name:
            known = [*SCORERS, LIKELIHOOD]
            hint = did_you_mean(name, known)
            raise ValueError(f"scorer: {name!r} is not one of {known} or module:function{hint}")
        module, function = _split(name)
        file = self._beside(module)
        if file is not None:
            names = _functions_in(file)
            if function not in names:
                hint = did_you_mean(function, names)
                raise ValueError(f"scorer: {file.name} defines no function {function!r}{hint}")
        elif module not in sys.modules and not _is_installed(module):
            allowed = f"no {module.replace('.', '/')}.py beside the experiment, and no such package"
            raise ValueError(f"scorer: module:function that can be imported: {allowed}")

    def find(self, name: str) -> "ItemScorer":
        """The scorer as a function of an item and an answer; imports the module it is in.

        Raises ValueError, or whatever the module raises. `likelihood` needs the refiner: `scoring`.
        """
        with self._lock:
            if name not in self._found:
                found = SCORERS[name] if name in SCORERS else self._import(name)
                self._found[name] = _of_item(found)
            return self._found[name]

    def close(self) -> None:
        """End the process of reasoning-gym's scorers."""
        if self._confined is not None:
            self._confined.close()

    def _reasoning_gym(self, item: "Item", text: str) -> float:
        with self._lock:
            self._confined = self._confined or ConfinedScorer()
        return self._confined.score(item.task, item.metadata, text)

    def _import(self, name: str) -> Callable[..., float]:
        self.check(name)
        module, function = _split(name)
        file = self._beside(module)
        found = import_module(module) if file is None else _load(module, file)
        scorer = getattr(found, function, None)
        if not callable(scorer):
            raise ValueError(f"scorer: {module} has no function {function!r}")
        return cast(Callable[..., float], scorer)

    def _beside(self, module: str) -> Path | None:
        file = self._folder / f"{module}.py"
        return file if "." not in module and file.is_file() else None


def _split(name: str) -> tuple[str, str]:
    module, _, function = name.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"scorer: {name!r} is not written module:function")
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise ValueError(f"scorer: {module} is of Python's standard library, which has no scorers")
    return module, function


def _is_installed(module: str) -> bool:
    """Whether a package of that name is on the path, but for the current folder's."""
    path = [one for one in sys.path if one and not _is_current(one)]
    top = module.partition(".")[0]
    return any(finder.find_spec(top, path) for finder in sys.meta_path if finder is not None)


def _is_current(folder: str) -> bool:
    try:
        return os.path.samefile(folder, os.curdir)
    except OSError:
        return False


def _functions_in(file: Path) -> list[str]:
    """Names that a file defines or imports at its top level, found without running it."""
    try:
        tree = ast.parse(read_regular_file(file, _MAX_SCORER_BYTES))
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        raise ValueError(f"scorer: {file}: {error}") from None
    names = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.ImportFrom):
            names += [alias.asname or alias.name for alias in node.names]
        elif isinstance(node, ast.Assign):
            names += [one.id for one in node.targets if isinstance(one, ast.Name)]
    return names


def _load(module: str, file: Path) -> ModuleType:
    """A file as a module of its own, which no other import finds."""
    name = f"hybrid_scorers_{module}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # dataclasses look their module up
    try:
        spec.loader.exec_module(made)
    except BaseException:
        del sys.modules[name]
        raise
    return made


def _of_item(scorer: Callable[..., float]) -> "ItemScorer":
    """A scorer with the item that it may ask for, by a parameter named `item`."""
    try:
        wants_item = "item" in signature(scorer).parameters
    except (TypeError, ValueError):
        wants_item = False

    def score(item: "Item", text: str) -> float:
        more = {"item": item} if wants_item else {}
        return float(scorer(item.prompt, item.reference, text, **more))

    return score
