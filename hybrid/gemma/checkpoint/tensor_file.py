"""One safetensors file: its header, and tensors read from their byte ranges.

Nothing is mapped. A map of the whole file counts against the memory that the system promises to a
process, so a file of 51 GB could not even be opened on a machine of 23 GB.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from stat import S_ISREG
from typing import Any

import torch
from torch import Tensor

from hybrid.errors import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MOST_HEADER = 100_000_000  # bytes, as in the format's own library


def stored_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of a type in `DTYPES`."""
    return prod(shape) * DTYPES[dtype].itemsize


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in the file: type as the format calls it, shape, and where its bytes begin."""

    dtype: str
    shape: tuple[int, ...]
    start: int


class TensorFile:
    """The tensors of the file `path`; CheckpointError for a file that is not whole.

    One thread at a time may read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            if not S_ISREG(path.stat().st_mode):
                raise CheckpointError(str(path), "not a file")
            self._stream = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise CheckpointError(str(path), "missing file") from None
        except OSError as problem:
            raise CheckpointError(str(path), f"not readable: {problem.strerror}") from None
        except ValueError as problem:  # a name that no file can have
            raise CheckpointError(str(path), f"not readable: {problem}") from None
        try:
            self.entries: Mapping[str, Entry] = self._read_header()
        except BaseException:
            self._stream.close()
            raise

    def read(self, name: str, part: slice | None = None, buffer: Tensor | None = None) -> Tensor:
        """A tensor as stored, or of its first dimension the indices in `part`, without a step.

        It is in the first bytes of `buffer`, uint8, if that is given.
        """
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise CheckpointError(str(self._path), f"{entry.dtype} is not a type read here", name)
        start, shape = entry.start, entry.shape
        if part is not None:
            first, after, _ = part.indices(shape[0])
            start += stored_bytes(entry.dtype, (first, *shape[1:]))
            shape = (after - first, *shape[1:])
        size = stored_bytes(entry.dtype, shape)
        data = torch.empty(size, dtype=torch.uint8) if buffer is None else buffer[:size]
        self._fill(data.numpy().data, start, name)
        return data.view(DTYPES[entry.dtype]).view(shape)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _fill(self, buffer: memoryview, start: int, name: str | None) -> None:
        try:
            self._stream.seek(start)
            while buffer:
                count = self._stream.readinto(buffer)
                if not count:
                    raise self._broken(f"ends {len(buffer)} bytes too early", name)
                buffer = buffer[count:]
        except OSError as problem:
            raise CheckpointError(
                str(self._path), f"not readable: {problem.strerror}", name
            ) from None

    def _read_header(self) -> dict[str, Entry]:
        length = bytearray(8)
        self._fill(memoryview(length), 0, None)
        size, whole = int.from_bytes(length, "little"), self._path.stat().st_size
        if size > min(_MOST_HEADER, whole - 8):
            raise self._broken(f"a header of {size} bytes in a file of {whole}")
        text = bytearray(size)
        self._fill(memoryview(text), 8, None)
        try:
            values = json.loads(text)
            values.pop("__metadata__", None)
        except (ValueError, TypeError, AttributeError, RecursionError) as problem:
            raise self._broken(f"header: {problem!r}") from None
        ranges = {name: self._range(name, value) for name, value in values.items()}
        end = 0
        for name, (entry, first, after) in sorted(ranges.items(), key=lambda item: item[1][1:]):
            known = entry.dtype in DTYPES
            if first != end or (known and after - first != stored_bytes(entry.dtype, entry.shape)):
                message = f"{entry.dtype} {[*entry.shape]} cannot be bytes {first} to {after}"
                raise self._broken(message, name)
            end = after
            if 8 + size + end > whole:
                raise self._broken(f"ends {8 + size + end - whole} bytes too early", name)
        if 8 + size + end != whole:
            raise self._broken(f"{whole - 8 - size - end} bytes behind the last tensor")
        return {
            name: Entry(entry.dtype, entry.shape, 8 + size + first)
            for name, (entry, first, _) in ranges.items()
        }

    def _range(self, name: str, value: Any) -> tuple[Entry, int, int]:
        try:
            return _entry(value)
        except (ValueError, KeyError, TypeError) as problem:
            raise self._broken(f"header: {problem!r}", name) from None

    def _broken(self, message: str, name: str | None = None) -> CheckpointError:
        return CheckpointError(str(self._path), f"not a whole safetensors file: {message}", name)


def _entry(value: Mapping[str, Any]) -> tuple[Entry, int, int]:
    """Type and shape, and the bytes that the header gives them."""
    first, after = value["data_offsets"]
    shape, dtype = tuple(value["shape"]), value["dtype"]
    if not isinstance(dtype, str):
        raise TypeError(f"type {dtype!r}")
    are_whole = all(type(number) is int and number >= 0 for number in (first, after, *shape))
    if not are_whole or after < first:
        raise ValueError(f"shape {shape} in bytes {first} to {after}")
    return Entry(dtype, shape, 0), first, after
