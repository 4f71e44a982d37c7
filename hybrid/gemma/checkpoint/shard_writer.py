"""Writing a safetensors file tensor by tensor, so that a shard is never in memory whole.

Types are laid out from the widest to the narrowest: torch reads a number only from a multiple of
its size.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from hybrid.gemma.checkpoint.resume_state import PARTIAL, naming
from hybrid.gemma.checkpoint.tensor_file import stored_bytes

Form = tuple[str, tuple[int, ...]]


class ShardWriter:
    """A file that appears under its name when all of `forms` are written, and not before.

    `forms` are stored types, as safetensors calls them, and shapes. OSError names the file.
    """

    def __init__(self, file: Path, forms: Mapping[str, Form]) -> None:
        self._file, self._partial = file, file.with_name(file.name + PARTIAL)
        self._forms, self._missing = forms, {*forms}
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (dtype, shape) in sorted(forms.items(), key=lambda item: -_width(item[1])):
            start, end = end, end + stored_bytes(dtype, shape)
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        self._start = 8 + len(header)
        self._offsets = {name: entries[name]["data_offsets"][0] for name in forms}
        with naming(file):
            self._stream = self._partial.open("wb")
            self._stream.write(len(header).to_bytes(8, "little") + header)

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor in its place."""
        dtype, shape = self._forms[name]
        assert tuple(tensor.shape) == shape, name
        assert tensor.nbytes == stored_bytes(dtype, shape), name
        data = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        with naming(self._file):
            self._stream.seek(self._start + self._offsets[name])
            self._stream.write(data)
        self._missing.discard(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._discard()
            return
        assert not self._missing, self._missing
        try:
            with naming(self._file), self._stream:
                self._stream.flush()
                os.fsync(self._stream.fileno())
            self._partial.replace(self._file)
        except OSError:
            self._discard()
            raise

    def _discard(self) -> None:
        """Free the disk space; what is still buffered may not fit and is not needed."""
        self._stream.raw.close()
        self._partial.unlink(missing_ok=True)


def _width(form: Form) -> int:
    return stored_bytes(form[0], (1,))
