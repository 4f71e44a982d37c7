"""Typed access to a JSON file's keys, with errors that name the file and the key."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from hybrid.errors import CheckpointError, did_you_mean

LARGEST = 3.4028234663852886e38  # of float32


@dataclass(frozen=True, slots=True)
class Fields:
    """One JSON object of a file; `prefix` is the dotted path that leads to it."""

    file: Path
    values: Mapping[str, Any]
    prefix: str = ""

    @classmethod
    def read(cls, file: Path) -> Self:
        """The object that the JSON file holds; CheckpointError if there is none."""
        if file.exists() and not file.is_file():
            raise CheckpointError(str(file), "not a file")
        try:
            values = json.loads(file.read_text("utf-8"))
        except FileNotFoundError:
            raise CheckpointError(str(file), "missing; is this a model folder?") from None
        except (OSError, ValueError, RecursionError) as problem:
            raise CheckpointError(str(file), f"not readable as JSON: {problem}") from None
        if not isinstance(values, dict):
            raise CheckpointError(str(file), "not a JSON object")
        return cls(file, values)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def error(self, key: str, message: str) -> CheckpointError:
        """An error about one key, to raise."""
        return CheckpointError(str(self.file), f"{self.prefix}{key}: {message}")

    def get(self, key: str) -> Any:
        """The value as it is, None if missing."""
        return self.values.get(key)

    def require(self, key: str) -> Any:
        """The value as it is; CheckpointError if the key is missing."""
        if key not in self.values:
            raise self.error(key, "missing")
        return self.values[key]

    def section(self, key: str) -> "Fields":
        """The object under `key`."""
        values = self.require(key)
        if not isinstance(values, dict):
            raise self.error(key, f"{values!r} is not an object")
        return Fields(self.file, values, f"{self.prefix}{key}.")

    def whole(self, key: str, least: int = 1, most: str | None = None) -> int:
        """The whole number under `key`, at least `least` and at most that under the key `most`."""
        value = self.require(key)
        if type(value) is not int or not least <= value < 2**63:
            raise self.error(key, f"{value!r} is not a whole number from {least} up")
        if most is not None and value > self.whole(most):
            raise self.error(key, f"{value} is more than {most}")
        return value

    def positive(self, key: str, most: float = LARGEST) -> float:
        """The number under `key`, above 0 and at most `most`."""
        value = self.require(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
            raise self.error(key, f"{value!r} is not a number above 0 and at most {most:.4g}")
        return float(value)

    def number(self, key: str, least: float = 0.0) -> float:
        """The finite number under `key`, at least `least`."""
        value = self.require(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not least <= value <= LARGEST:
            raise self.error(key, f"{value!r} is not a number from {least:g} up")
        return float(value)

    def positive_or_none(self, key: str) -> float | None:
        """The number above 0 under `key`, or None where it is null."""
        return None if self.require(key) is None else self.positive(key)

    def choice(self, key: str, allowed: Iterable[str]) -> str:
        """The word under `key`, one of `allowed`."""
        value, allowed = self.require(key), list(allowed)
        if value not in allowed:
            hint = did_you_mean(str(value), allowed)
            raise self.error(key, f"{value!r} is not one of {', '.join(allowed)}{hint}")
        return str(value)

    def list_of(self, key: str, allowed: Iterable[str]) -> list[str]:
        """The list of words under `key`, each one of `allowed`."""
        values, allowed = self.require(key), list(allowed)
        if not isinstance(values, list) or not values:
            raise self.error(key, f"{values!r} is not a list")
        for value in values:
            if value not in allowed:
                raise self.error(key, f"{value!r} is not one of {', '.join(allowed)}")
        return values
