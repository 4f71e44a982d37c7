"""The tensors of a model folder: one safetensors file, or shards with an index.

Tensors are read one by one, or in parts, so a model is never in memory twice. Whatever a model does
not ask for is a mistake, unless it belongs to a tower that is knowingly left out. Tensors that a
model ties may be stored under either name, or under both: here they have one, and two that differ
are an error.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hybrid.errors import CheckpointError
from hybrid.gemma.checkpoint.foreign import explain_unread
from hybrid.gemma.checkpoint.tensor_file import DTYPES, Entry, TensorFile, stored_bytes

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MOST_NAMED = 5
_PIECE = 2**24  # bytes of two tensors that are compared at a time
_ENCODER, _DECODER = "model.encoder.language_model.", "model.decoder."
_STACKS = (_DECODER, "model.language_model.", "model.")
_HEAD = "lm_head.weight"


class Checkpoint:
    """Named tensors of the model folder `path`; every failure is a CheckpointError."""

    def __init__(self, path: str | Path) -> None:
        self.directory = Path(path)
        self._shards: dict[Path, TensorFile] = {}
        files = self._read_index()
        names = _names_here(files)
        self._stored: dict[str, str] = {}  # by what a tensor is called here
        for stored, name in names.items():
            if name == stored or name not in self._stored:
                self._stored[name] = stored
        self._files = {name: files[stored] for name, stored in self._stored.items()}
        self._twice = {
            stored: (files[stored], name)
            for stored, name in names.items()
            if self._stored[name] != stored
        }
        self._unread = dict.fromkeys(self._files)
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def names(self) -> list[str]:
        """All tensors, in the order of the files."""
        return [*self._files]

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Stored type, as safetensors calls it, and shape of a tensor; reads its header only."""
        entry = self._shards[self._files[name]].entries[self._stored[name]]
        return entry.dtype, entry.shape

    def file(self, name: str) -> str:
        """The file that holds, or should hold, the tensor."""
        return str(self._files.get(name, self.directory / self._expected))

    def error(self, name: str, message: str) -> CheckpointError:
        """An error about one tensor, to raise."""
        return CheckpointError(self.file(name), message, tensor=self._stored.get(name, name))

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
        if dtypes and DTYPES.get(stored) not in dtypes:
            expected = " or ".join(_dtype_name(dtype) for dtype in dtypes)
            given = _dtype_name(DTYPES[stored]) if stored in DTYPES else stored
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
        return self._shards[self._files[name]].read(self._stored[name])

    def numbers(self, name: str, shape: Sequence[int]) -> Tensor:
        """The tensor as stored, of one of `FLOATS`; CheckpointError also where it is not finite."""
        tensor = self.read(name, shape, FLOATS)
        self.require_finite(name, all_finite(tensor))
        return tensor

    def require_finite(self, name: str, is_finite: Tensor | bool) -> None:
        """Raise CheckpointError unless the tensor's numbers were found to be finite."""
        if not is_finite:
            raise self.error(name, "holds NaN or infinity")

    def pieces(self, name: str, most: int) -> Iterator[tuple[slice, Tensor]]:
        """A checked tensor along its first dimension: where each part goes, and the part.

        A part has at most `most` bytes, or one index, and lasts until the next one, of any tensor.
        All are in one buffer: in many they fragment the heap, to 1.7 GB of a model of 51 GB.
        """
        dtype, shape = self.describe(name)
        row = stored_bytes(dtype, shape[1:])
        step = max(1, most // max(1, row))
        if len(self._buffer) < max(most, row):
            self._buffer = torch.empty(max(most, row), dtype=torch.uint8)
        for start in range(0, shape[0], step):
            part = slice(start, min(start + step, shape[0]))
            file = self._shards[self._files[name]]
            yield part, file.read(self._stored[name], part, self._buffer)

    def compare_tied(self) -> None:
        """Raise CheckpointError for a tensor that is stored under two names with two contents."""
        for other, (file, name) in self._twice.items():
            shard = self._shards[file]
            if self.describe(name)[1] != shard.entries[other].shape or not all(
                torch.equal(piece.double(), shard.read(other, part).double())
                for part, piece in self.pieces(name, _PIECE)
            ):
                message = f"differs from {self._stored[name]}; the model has one tensor for both"
                raise CheckpointError(str(file), message, tensor=other)

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
            hint = explain_unread(names)
            message = f"tensors that this model has no place for: {names[:_MOST_NAMED]}{more}{hint}"
            raise CheckpointError(self.file(names[0]), message, tensor=names[0])

    def _read_index(self) -> dict[str, Path]:
        index = self.directory / INDEX
        has_index = os.path.lexists(index)
        self._expected = INDEX if has_index else SINGLE
        if not has_index:
            file = self.directory / SINGLE
            return dict.fromkeys(self._open(file), file)
        if index.exists() and not index.is_file():
            raise CheckpointError(str(index), "not a file")
        try:
            weight_map = {**json.loads(index.read_text("utf-8"))["weight_map"]}
            shards = {file: self.directory / str(file) for file in {*weight_map.values()}}
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as problem:
            raise CheckpointError(str(index), f"not an index of shards: {problem!r}") from None
        for name, file in weight_map.items():
            if shards[file].name != file:
                message = f"{file!r} is not the name of a file of this folder"
                raise CheckpointError(str(index), message, name)
        files = {name: shards[file] for name, file in weight_map.items()}
        held = {file: self._open(file) for file in dict.fromkeys(files.values())}
        for name, file in files.items():
            if name not in held[file]:
                raise CheckpointError(str(file), f"missing, though {INDEX} places it here", name)
        for file, entries in held.items():
            for name in entries:
                if files.setdefault(name, file) is not file:  # what the index left out counts too
                    message = f"is here too, though {INDEX} places it in {files[name].name}"
                    raise CheckpointError(str(file), message, name)
        return files

    def _open(self, file: Path) -> Mapping[str, Entry]:
        self._shards[file] = TensorFile(file)
        return self._shards[file].entries

    def close(self) -> None:
        """Close the files."""
        for shard in self._shards.values():
            shard.close()
        self._shards.clear()
        self._buffer = torch.empty(0, dtype=torch.uint8)


def _names_here(stored: Iterable[str]) -> dict[str, str]:
    """What each stored tensor is called here: by the decoder's name what DiffusionGemma's encoder
    shares with it, and by the embedding's the output head.
    """
    names = {
        name: _DECODER + name.removeprefix(_ENCODER)
        if name.startswith(_ENCODER) and not name.endswith(".layer_scalar")
        else name
        for name in stored
    }
    if _HEAD in names:
        here = [*names.values()]
        stack = (prefix for prefix in _STACKS if any(name.startswith(prefix) for name in here))
        names[_HEAD] = f"{next(stack, '')}embed_tokens.weight"
    return names


def all_finite(tensor: Tensor) -> Tensor:
    """Whether there is neither NaN nor infinity in it, where it is.

    `isfinite` makes tensors of that size, and takes forty times as long (bfloat16, one core).
    """
    low, high = torch.aminmax(tensor)
    return low.isfinite() & high.isfinite()


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
