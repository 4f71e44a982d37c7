"""The tensors of a model folder: one safetensors file, or shards with an index.

Tensors are read one by one from the mapped files, so a model is never in memory twice. Whatever a
model does not ask for is a mistake, unless it belongs to a tower that is knowingly left out.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hybrid.errors import CheckpointError

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MOST_NAMED = 5
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "U8": torch.uint8,
}


class Checkpoint:
    """Named tensors of the model folder `path`; every failure is a CheckpointError."""

    def __init__(self, path: str | Path) -> None:
        self.directory = Path(path)
        self._shards: dict[Path, Any] = {}
        self._files = self._read_index()
        self._unread = dict.fromkeys(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def names(self) -> list[str]:
        """All tensors, in the order of the files."""
        return [*self._files]

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Stored type, as safetensors calls it, and shape of a tensor; reads its header only."""
        header = self._shards[self._files[name]].get_slice(name)
        return header.get_dtype(), tuple(header.get_shape())

    def file(self, name: str) -> str:
        """The file that holds, or should hold, the tensor."""
        return str(self._files.get(name, self.directory / self._expected))

    def error(self, name: str, message: str) -> CheckpointError:
        """An error about one tensor, to raise."""
        return CheckpointError(self.file(name), message, tensor=name)

    def holds_bytes(self, name: str) -> bool:
        """Whether the tensor exists and is stored as uint8."""
        return name in self and self.describe(name)[0] == "U8"

    def check(
        self,
        name: str,
        shape: Sequence[int] | None = None,
        dtypes: Sequence[torch.dtype] = (),
    ) -> None:
        """Note that the tensor has a use; its header must say `shape` and one of `dtypes`."""
        if name not in self._files:
            raise self.error(name, "missing tensor")
        self._unread.pop(name, None)
        stored, found = self.describe(name)
        if dtypes and _DTYPES.get(stored) not in dtypes:
            expected = " or ".join(_dtype_name(dtype) for dtype in dtypes)
            given = _dtype_name(_DTYPES[stored]) if stored in _DTYPES else stored
            raise self.error(name, f"expected {expected}, found {given}")
        if shape is not None and found != tuple(shape):
            raise self.error(name, f"expected shape {[*shape]}, found {[*found]}")

    def read(
        self,
        name: str,
        shape: Sequence[int] | None = None,
        dtypes: Sequence[torch.dtype] = (),
    ) -> Tensor:
        """The tensor as stored, after checking it as `check` does."""
        self.check(name, shape, dtypes)
        try:
            tensor: Tensor = self._shards[self._files[name]].get_tensor(name)
        except SafetensorError as problem:
            raise self.error(name, f"not readable: {problem}") from None
        return tensor

    def skip(self, prefixes: Sequence[str], suffixes: Sequence[str] = ()) -> tuple[str, ...]:
        """Leave out the unread tensors so called; returns their names."""
        matching = [
            name
            for name in self._unread
            if name.startswith(tuple(prefixes)) or name.endswith(tuple(suffixes))
        ]
        for name in matching:
            del self._unread[name]
        return tuple(matching)

    def refuse_unread(self) -> None:
        """Raise CheckpointError if there are tensors that nobody asked for."""
        if self._unread:
            names = [*self._unread]
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            message = f"tensors that this model has no place for: {names[:_MOST_NAMED]}{more}"
            raise CheckpointError(self.file(names[0]), message, tensor=names[0])

    def _read_index(self) -> dict[str, Path]:
        index = self.directory / INDEX
        self._expected = INDEX if index.exists() else SINGLE
        if not index.exists():
            file = self.directory / SINGLE
            return dict.fromkeys(self._open(file), file)
        try:
            weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
            files = {str(name): self.directory / str(file) for name, file in weight_map.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            raise CheckpointError(str(index), f"not an index of shards: {problem!r}") from None
        held = {file: self._open(file) for file in dict.fromkeys(files.values())}
        for name, file in files.items():
            if name not in held[file]:
                raise CheckpointError(str(file), f"missing, though {INDEX} places it here", name)
        return files

    def _open(self, file: Path) -> set[str]:
        if not file.is_file():
            raise CheckpointError(str(file), "missing file")
        try:
            self._shards[file] = safe_open(str(file), framework="pt")
        except (SafetensorError, OSError) as problem:
            raise CheckpointError(str(file), f"not a whole safetensors file: {problem}") from None
        except RuntimeError as problem:  # a file larger than the system lets a process map
            hint = "split it into shards, or allow it with sysctl vm.overcommit_memory=1"
            raise CheckpointError(str(file), f"{problem}; {hint}") from None
        return set(self._shards[file].keys())

    def close(self) -> None:
        """Unmap the files."""
        for shard in self._shards.values():
            with suppress(AttributeError):
                shard.__exit__(None, None, None)
        self._shards.clear()


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
