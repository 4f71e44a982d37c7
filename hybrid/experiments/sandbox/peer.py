"""Calls between two processes that share nothing but two pipes; either may call the other.

`Remote` stands for an object of the other process. Such an object compares and computes only with
objects of the same process: if one could say that it equals a number here, an answer could pass
every assertion by returning an object that equals everything.
"""

import json
import operator
from collections.abc import Callable, Mapping
from typing import IO, Any

from hybrid.experiments.sandbox.values import Json, decode, encode

MAX_MESSAGE = 8 << 20  # bytes of JSON
Operation = Callable[..., Any]


class Disconnected(BaseException):
    """The other process has ended, or has sent what is no message; nothing must catch this."""


class Remote:
    """An object of the other process."""

    def __init__(self, peer: "Peer", number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._peer.request("call", self, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._peer.request("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.request("setattr", self, name, value)

    def __instancecheck__(self, instance: Any) -> bool:
        known = isinstance(instance, Remote)
        return known and bool(self._peer.request("isinstance", instance, self))


_ALONE: Mapping[str, Operation] = {
    "len": len, "iter": iter, "next": next, "getitem": operator.getitem,
    "setitem": operator.setitem, "delitem": operator.delitem, "bool": bool, "int": int,
    "float": float, "str": str, "repr": repr, "hash": hash, "abs": abs, "neg": operator.neg,
    "enter": lambda one: one.__enter__(),
    "exit": lambda one, *told: one.__exit__(None, None, None),
}  # fmt: skip
_AMONG: Mapping[str, Operation] = {
    name: getattr(operator, name)
    for name in (
        "eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod",
        "pow", "matmul", "and_", "or_", "xor",
    )
}  # fmt: skip
OPERATIONS: Mapping[str, Operation] = {
    **_ALONE, **_AMONG, "call": lambda made, *args, **kwargs: made(*args, **kwargs),
    "getattr": getattr, "setattr": setattr, "isinstance": isinstance,
}  # fmt: skip


def _alone(name: str) -> Operation:
    return lambda self, *args: self._peer.request(name, self, *args)


def _among(name: str) -> Operation:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, Remote):
            return NotImplemented
        return self._peer.request(name, self, other)

    return method


for _name in _ALONE:
    setattr(Remote, f"__{_name}__", _alone(_name))
for _name in _AMONG:
    setattr(Remote, f"__{_name.rstrip('_')}__", _among(_name))


class Peer:
    """One end: requests to the other process, and answers to its requests meanwhile.

    `serve` does what the other asks for, or raises. `refer` and `find` write and read references of
    kinds that only one end knows; they return None for others.
    """

    def __init__(
        self,
        read: IO[bytes],
        write: IO[bytes],
        serve: Callable[..., Any],
        refer: Callable[[Any], Json] = lambda value: None,
        find: Callable[[list[Any]], Any] = lambda written: None,
    ) -> None:
        self._read, self._write, self._serve = read, write, serve
        self._refer, self._find = refer, find
        self.objects: list[Any] = []  # that the other end refers to, by number
        self._numbers: dict[int, int] = {}  # of `objects`, by identity
        self._remotes: dict[int, Remote] = {}
        self.is_connected = True

    def request(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """What the other process returns; raises what it raises.

        A list, dictionary or set that it changes is changed here too.
        """
        sent = {
            "do": operation,
            "args": [self.encode(one) for one in args],
            "kwargs": {name: self.encode(one) for name, one in kwargs.items()},
        }
        self._send(sent)
        answer = self.serve_until(lambda message: "do" not in message)
        if "raised" in answer:
            raise self._error(answer["raised"])
        for mine, changed in zip(args, answer["args"], strict=True):
            if changed is not None:
                _become(mine, self.decode(changed))
        return self.decode(answer["value"])

    def serve_until(self, is_last: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any]:
        """Answer requests; returns the first message that is none of them and the last."""
        while True:
            message = self._receive()
            if is_last(message):
                return message
            self._answer(message)

    def _answer(self, message: Mapping[str, Any]) -> None:
        try:
            args = [self.decode(one) for one in message["args"]]
            kwargs = {name: self.decode(one) for name, one in message["kwargs"].items()}
            value = self._serve(message["do"], *args, **kwargs)
            changed = [
                self.encode(one) if isinstance(one, list | dict | set | bytearray) else None
                for one in args
            ]
            changed = [
                None if now == before else now
                for now, before in zip(changed, message["args"], strict=True)
            ]
            self._send({"value": self.encode(value), "args": changed})
        except Disconnected:
            raise
        except BaseException as error:  # of an answer, which may raise anything
            self._send({"raised": self._raised(error)})

    def _raised(self, error: BaseException) -> list[Any]:
        """An error as its class and its arguments, as far as they are data."""
        try:
            args = [self.encode(one) for one in error.args]
        except Exception:
            args = [str(type(error).__name__)]
        return [self.encode(type(error)), args]

    def _error(self, raised: list[Any]) -> Exception:
        kind, args = self.decode(raised[0]), [self.decode(one) for one in raised[1]]
        is_error = isinstance(kind, type) and issubclass(kind, Exception)
        try:
            return kind(*args) if is_error else RuntimeError(*args)
        except Exception:
            return RuntimeError(*args)

    def encode(self, value: Any) -> Json:
        """A value for the other process."""
        return encode(value, self._reference)

    def decode(self, written: Json) -> Any:
        """A value from the other process."""
        return decode(written, self._referent)

    def _reference(self, value: Any) -> Json:
        if isinstance(value, Remote):
            return ["yours", value._number]
        known = self._refer(value)
        if known is not None:
            return known
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.objects)
            self.objects.append(value)  # also keeps its identity
        return ["mine", self._numbers[id(value)]]

    def _referent(self, written: list[Any]) -> Any:
        match written:
            case ["yours", int(number)] if 0 <= number < len(self.objects):
                return self.objects[number]
            case ["mine", int(number)]:
                return self._remotes.setdefault(number, Remote(self, number))
        found = self._find(written)
        if found is None:
            raise ValueError(f"no reference: {written!r:.80}")
        return found

    def _send(self, message: Mapping[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        if len(line) > MAX_MESSAGE:
            raise ValueError(f"more than {MAX_MESSAGE >> 20} MB between answer and assertions")
        try:
            self._write.write(line)
            self._write.flush()
        except (OSError, ValueError):
            raise self._disconnected() from None

    def _receive(self) -> Mapping[str, Any]:
        try:
            message = json.loads(self._read.readline(MAX_MESSAGE))
        except (OSError, ValueError, RecursionError):
            raise self._disconnected() from None
        if not isinstance(message, dict):
            raise self._disconnected()
        return message

    def _disconnected(self) -> Disconnected:
        self.is_connected = False
        return Disconnected()


def _become(mine: Any, now: Any) -> None:
    """Give a container the content of another."""
    if isinstance(mine, list | bytearray):
        mine[:] = now
    elif isinstance(mine, dict | set):
        mine.clear()
        mine.update(now)
