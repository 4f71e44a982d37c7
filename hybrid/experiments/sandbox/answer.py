"""The process in which an answer's code runs: once from top to bottom, then whatever is called.

It knows neither the assertions nor what they expect. `python -c` starts `main` with two pipes.
"""

import builtins
import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from hybrid.experiments.sandbox.confine import confine
from hybrid.experiments.sandbox.peer import OPERATIONS, Disconnected, Peer
from hybrid.experiments.sandbox.values import Json

NAME = "answer"
# Modules of the standard library that a check may take from the answer's imports: from its own
# library, not from the answer's process.
SHARED = (
    "math", "cmath", "random", "itertools", "functools", "collections", "re", "string", "copy",
    "typing", "operator", "statistics", "fractions", "decimal", "datetime", "json", "heapq",
    "bisect", "time",
)  # fmt: skip


def main(read: int, write: int, seconds: int) -> None:
    """Run the code on stdin, say which names it has left, and serve the other process."""
    text = sys.stdin.read()
    streams = os.fdopen(read, "rb"), os.fdopen(write, "wb")
    confine(Path.cwd(), seconds)
    module = ModuleType(NAME)
    sys.modules[NAME] = module  # where dataclasses and pickle look a class up
    exec(compile(text, NAME, "exec"), module.__dict__)

    def serve(operation: str, *args: Any, **kwargs: Any) -> Any:
        if operation == "names":
            return [name for name in module.__dict__ if not name.startswith("__")]
        if operation == "shared":
            return _shared(module.__dict__[args[0]])
        if operation == "name":
            return module.__dict__[args[0]]
        return OPERATIONS[operation](*args, **kwargs)

    try:
        Peer(*streams, serve, _refer).serve_until(lambda message: False)
    except Disconnected:
        return


def _shared(value: Any) -> tuple[str, str] | None:
    """Module and attribute of what the answer has imported from a shared module."""
    for name in SHARED:
        module = sys.modules.get(name)
        if value is module and module is not None:
            return name, ""
        found = [key for key, one in vars(module).items() if one is value] if module else []
        if found and not isinstance(value, int | float | str):
            return name, found[0]
    return None


def _refer(value: Any) -> Json:
    """Exception classes: what of them is Python's, and what the answer's."""
    if not (isinstance(value, type) and issubclass(value, BaseException)):
        return None
    own = [one.__name__ for one in value.__mro__ if not hasattr(builtins, one.__name__)]
    base = next(one.__name__ for one in value.__mro__ if hasattr(builtins, one.__name__))
    return ["error", own, base]


def load(module: str, attribute: str) -> Any:
    """The check's own of what `_shared` named; raises ImportError for other modules."""
    if module not in SHARED:
        raise ImportError(module)
    found = import_module(module)
    return getattr(found, attribute) if attribute else found
