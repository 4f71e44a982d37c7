"""Rows of a task file: JSON lines, CSV or Parquet, by the file's ending.

Only regular files are read, of at most `MAX_BYTES`.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from hybrid.errors import CapabilityError, RequestError
from hybrid.files import read_regular_file

MAX_BYTES = 256 << 20
_JSON_COLUMNS = ("messages", "metadata")  # of a table, where a cell is text


@dataclass(frozen=True, slots=True)
class Row:
    """A row's values by column; `where` is file and line; a table may have other columns."""

    where: str
    values: Mapping[str, Any]
    is_table: bool = False

    @property
    def text(self) -> str:
        """Its beginning, for messages."""
        return f"{self.values!r:.60}"

    def as_text(self, value: object) -> str:
        """A value as JSON, and nothing as an empty text."""
        return "" if value is None else json.dumps(value)


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of a file; raises RequestError, with file and line."""
    try:
        content = read_regular_file(file, MAX_BYTES)
        if file.suffix == ".parquet":
            yield from _parquet(content, file)
        else:
            text = content.decode("utf-8-sig")
            yield from _csv(text, file) if file.suffix == ".csv" else _json_lines(text, file)
    except (OSError, ValueError) as error:  # such as a name with a null character
        kind = "a Parquet" if file.suffix == ".parquet" else "a UTF-8 text"
        allowed = f"{kind} file of at most {MAX_BYTES >> 20} MB ({error})"
        raise RequestError("tasks.file", str(file), allowed) from None


def _json_lines(text: str, file: Path) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            values = json.loads(line, parse_constant=_refuse)
            if isinstance(values, dict):
                json.dumps(values)  # as deep as it is read, it can be written
        except (ValueError, RecursionError) as error:
            raise RequestError(where, line[:60], f"one JSON object a line ({error})") from None
        if not isinstance(values, dict):
            raise RequestError(
                where, line[:60], "an object with a prompt, which is text, or messages"
            )
        yield Row(where, values)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _csv(text: str, file: Path) -> Iterator[Row]:
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    try:
        for values in reader:
            where = f"{file}:{reader.line_num}"
            if None in values or None in values.values():
                raise RequestError(
                    where, f"{values!r:.60}", f"{len(reader.fieldnames or ())} cells"
                )
            yield _table_row(where, {key: value or None for key, value in values.items()})
    except csv.Error as error:
        raise RequestError(f"{file}:{reader.line_num}", file.name, f"CSV ({error})") from None


def _parquet(content: bytes, file: Path) -> Iterator[Row]:
    try:
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        hint = "pyarrow is missing: install the extra 'tables', or write JSON lines"
        raise CapabilityError(f"reading {file}", "this installation", hint) from None
    for number, values in enumerate(parquet.read_table(BytesIO(content)).to_pylist(), 1):
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        yield _table_row(f"{file}:{number}", finite)


def _table_row(where: str, values: dict[str, Any]) -> Row:
    """With JSON in cells read, and values that JSON does not have as text."""
    for name, value in values.items():
        if name in _JSON_COLUMNS and isinstance(value, str):
            try:
                values[name] = json.loads(value, parse_constant=_refuse)
            except (ValueError, RecursionError) as error:
                raise RequestError(f"{where}: {name}", value[:60], f"JSON ({error})") from None
    return Row(where, json.loads(json.dumps(values, default=str)), is_table=True)
