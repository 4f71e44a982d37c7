"""Python values as JSON, between the process of an answer and the process that checks it.

Only data crosses by value: numbers, text, containers and a few classes of the standard library.
Everything else crosses as a reference to an object that stays where it is, so no code of an answer
ever runs where it is checked.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

Json = Any  # None, bool, int, float, str, or a list whose first element is a tag
_PLAIN_INT = 1 << 60  # larger ones are written in hexadecimal, which has no limit on digits
_CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
}
_MAPPINGS: dict[str, Callable[[Any], Any]] = {
    "dict": dict,
    "Counter": lambda pairs: Counter(dict(pairs)),
    "OrderedDict": OrderedDict,
}


def encode(value: Any, refer: Callable[[Any], Json]) -> Json:
    """A value as JSON; `refer` writes what is no data. A subclass of a data type loses its class.

    Raises RecursionError for a container that contains itself.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        number = int(value)
        return number if abs(number) < _PLAIN_INT else ["int", hex(number)]
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray):
        return ["bytes" if isinstance(value, bytes) else "bytearray", bytes(value).hex()]
    for name, made in (("Counter", Counter), ("OrderedDict", OrderedDict), ("dict", dict)):
        if isinstance(value, made):
            pairs = [[encode(key, refer), encode(one, refer)] for key, one in value.items()]
            return [name, pairs]
    for kind in (list, tuple, set, frozenset, deque):
        if isinstance(value, kind):
            return [kind.__name__, [encode(one, refer) for one in value]]
    written = _encode_rare(value)
    if written is not None:
        return written
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return encode(value.tolist(), refer)
    return refer(value)


def _encode_rare(value: Any) -> Json:
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, range):
        return ["range", hex(value.start), hex(value.stop), hex(value.step)]
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return ["slice", *(part if part is None else hex(part) for part in parts)]
    if isinstance(value, Fraction):
        return ["Fraction", hex(value.numerator), hex(value.denominator)]
    if isinstance(value, Decimal):
        return ["Decimal", str(value)]
    if isinstance(value, datetime):
        return ["datetime", value.isoformat()]
    if isinstance(value, date):
        return ["date", value.isoformat()]
    if isinstance(value, timedelta):
        return ["timedelta", value.days, value.seconds, value.microseconds]
    return ["Ellipsis"] if value is Ellipsis else None


def decode(written: Json, find: Callable[[list[Any]], Any]) -> Any:
    """What `encode` wrote; `find` reads what its `refer` wrote."""
    if not isinstance(written, list):
        return written
    tag, *parts = written
    if tag in _CONTAINERS:
        return _CONTAINERS[tag]([decode(one, find) for one in parts[0]])
    if tag in _MAPPINGS:
        return _MAPPINGS[tag]([(decode(key, find), decode(one, find)) for key, one in parts[0]])
    return _SCALARS[tag](*parts) if tag in _SCALARS else find(written)


def _whole(written: str) -> int:
    return int(written, 16)


_SCALARS: dict[str, Callable[..., Any]] = {
    "int": _whole,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": complex,
    "range": lambda *parts: range(*map(_whole, parts)),
    "slice": lambda *parts: slice(*(None if part is None else _whole(part) for part in parts)),
    "Fraction": lambda top, bottom: Fraction(_whole(top), _whole(bottom)),
    "Decimal": Decimal,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "timedelta": timedelta,
    "Ellipsis": lambda: Ellipsis,
}
