"""The process in which a reference's assertions run; the answer's objects are in another one.

A name that the reference uses is its own, Python's, or the answer's, in this order. So an answer
that redefines `abs` or leaves by `exit()` changes nothing here.
"""

import builtins
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

from hybrid.experiments.sandbox.answer import load
from hybrid.experiments.sandbox.confine import confine
from hybrid.experiments.sandbox.peer import OPERATIONS, Disconnected, Peer

PASSED, FAILED, BROKEN = "passed", "failed", "broken"
_NAME = "reference"


class _Names(dict[str, Any]):
    """The reference's own names, and behind them the answer's."""

    def __init__(self, peer: Peer, known: set[str]) -> None:
        super().__init__(__name__=_NAME)
        self._peer, self._known = peer, known

    def __missing__(self, name: str) -> Any:
        if name not in self._known:
            raise KeyError(name)
        shared = self._peer.request("shared", name)
        return load(*shared) if shared else self._peer.request("name", name)


def main(read: int, write: int, verdict: int, seconds: int) -> None:
    """Check the code on stdin against the process at the other end; the verdict goes to a pipe."""
    text = sys.stdin.read()
    streams = os.fdopen(read, "rb"), os.fdopen(write, "wb")
    report = os.fdopen(verdict, "w")
    confine(Path.cwd(), seconds)
    try:
        said = _check(text, *streams)
    except Disconnected:
        said = FAILED
    report.write(said)
    report.flush()


def _check(text: str, read: Any, write: Any) -> str:
    try:
        code = compile(text, _NAME, "exec")
    except (SyntaxError, ValueError) as error:
        return f"{BROKEN}: {error}"
    errors: dict[tuple[str, ...], type[Exception]] = {}
    peer = Peer(read, write, lambda *asked, **named: _serve(peer, *asked, **named))
    peer._find = lambda written: _find_error(written, errors)
    known = {str(name) for name in peer.request("names")}
    used = set(_names_in(code))
    own_builtins = used & known & set(dir(builtins))
    if own_builtins and not used & known - own_builtins:
        return f"{BROKEN}: {min(own_builtins)} is Python's own function, not the answer's"
    try:
        exec(code, _Names(peer, known - set(dir(builtins))))
    except SystemExit as end:  # only the reference can raise it, such as unittest.main()
        return PASSED if peer.is_connected and not end.code else FAILED
    except Exception:
        return FAILED
    return PASSED if peer.is_connected else FAILED  # a bare `except` may have caught its end


def _serve(peer: Peer, operation: str, *args: Any, **kwargs: Any) -> Any:
    """What an answer may do with objects of the reference that it was given.

    Functions can be called; of instances of the reference's own classes, public attributes can be
    read and set. Nothing that leads to this module.
    """
    target = args[0]
    if not any(target is one for one in peer.objects):
        raise TypeError("not an object of the reference")
    is_own = type(target).__module__ == _NAME
    if operation == "call" or (operation in ("bool", "hash", "eq", "repr", "str")):
        return OPERATIONS[operation](*args, **kwargs)
    if operation in ("getattr", "setattr") and is_own and not str(args[1]).startswith("_"):
        return OPERATIONS[operation](*args)
    raise TypeError(f"an answer cannot {operation} an object of the reference")


def _find_error(written: list[Any], errors: dict[tuple[str, ...], type[Exception]]) -> Any:
    """A class of exceptions as the answer has it: made once, so that `except` finds it again."""
    match written:
        case ["error", list(own), str(base)]:
            pass
        case _:
            return None
    found = getattr(builtins, base, Exception)
    made = found if isinstance(found, type) and issubclass(found, Exception) else RuntimeError
    for place in range(len(own) - 1, -1, -1):
        key = (*map(str, own[place:]), base)
        made = errors.setdefault(key, type(str(own[place]), (made,), {"__module__": _NAME}))
    return made


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
