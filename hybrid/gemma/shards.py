"""Writing a safetensors file tensor by tensor, so that a shard is never in memory whole.

Types are laid out from the widest to the narrowest: torch reads a number only from a multiple of
its size.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

Form = tuple[torch.dtype, tuple[int, ...]]
_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.uint8: "U8",
}


class ShardWriter:
    """A file that appears under its name when all of `forms` are written, and not before."""

    def __init__(self, file: Path, forms: Mapping[str, Form]) -> None:
        self._file, self._partial = file, file.with_name(f"{file.name}.partial")
        self._forms, self._missing = forms, {*forms}
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (dtype, shape) in sorted(forms.items(), key=lambda item: -item[1][0].itemsize):
            start, end = end, end + math.prod(shape) * dtype.itemsize
            offsets = [start, end]
            entries[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": offsets}
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        self._start = 8 + len(header)
        self._offsets = {name: entries[name]["data_offsets"][0] for name in forms}
        self._stream = self._partial.open("wb")
        self._stream.write(len(header).to_bytes(8, "little") + header)
        self._stream.truncate(self._start + end)

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor in its place."""
        assert (tensor.dtype, tuple(tensor.shape)) == self._forms[name], name
        self._stream.seek(self._start + self._offsets[name])
        self._stream.write(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self._missing.discard(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            assert not self._missing, self._missing
            self._stream.flush()
            os.fsync(self._stream.fileno())
        self._stream.close()
        if error is None:
            self._partial.replace(self._file)
