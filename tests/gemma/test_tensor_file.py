"""Safetensors files read by their byte ranges: what the format's library wrote, and broken ones."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hybrid.errors import CheckpointError
from hybrid.gemma.checkpoint.tensor_file import DTYPES, TensorFile
from tests.gemma.published import write_holes


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def test_every_type_and_shape_as_the_library_wrote_it(tmp_path: Path) -> None:
    tensors = {
        f"{name} {shape}": torch.randint(0, 2, shape).to(dtype)
        for name, dtype in DTYPES.items()
        for shape in ((), (0, 3), (5,), (3, 2, 4))
    }
    save_file(tensors, tmp_path / "file", metadata={"format": "pt"})
    file = TensorFile(tmp_path / "file")
    assert file.entries.keys() == tensors.keys()
    for name, tensor in tensors.items():
        found = file.read(name)
        assert found.dtype == tensor.dtype and found.shape == tensor.shape
        assert torch.equal(raw(found), raw(tensor))
    whole = tensors["BF16 (3, 2, 4)"]
    for part in (slice(1, 2), slice(0, 3), slice(2, 9), slice(1, 1)):
        assert torch.equal(file.read("BF16 (3, 2, 4)", part), whole[part])
    file.close()


def write(file: Path, entries: Any, data: bytes) -> None:
    header = json.dumps(entries).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)


def entry(dtype: str, shape: list[Any], first: int, after: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, after]}


BROKEN: dict[str, tuple[Any, int, str | None, str]] = {
    "cut": ({"a": entry("U8", [4], 0, 4), "b": entry("F32", [2], 4, 12)}, 8, "b", "4 bytes too"),
    "too long": ({"a": entry("U8", [4], 0, 4)}, 5, None, "1 bytes behind"),
    "another size": ({"a": entry("F32", [4], 0, 4)}, 4, "a", "F32 [4] cannot be bytes 0 to 4"),
    "a hole": ({"a": entry("U8", [4], 2, 6)}, 6, "a", "cannot be bytes 2 to 6"),
    "overlap": ({"a": entry("U8", [4], 0, 4), "b": entry("U8", [3], 3, 6)}, 6, "b", "3 to 6"),
    "backwards": ({"a": entry("U8", [4], 4, 0)}, 4, "a", "header"),
    "negative": ({"a": entry("U8", [-4, -1], 0, 4)}, 4, "a", "header"),
    "no number": ({"a": entry("U8", [4.5], 0, 4)}, 4, "a", "header"),
    "infinite": ({"a": entry("U8", [float("inf")], 0, 4)}, 4, "a", "header"),
    "no offsets": ({"a": {"dtype": "U8", "shape": [1]}}, 1, "a", "header"),
    "one offset": ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}, 1, "a", "header"),
    "no type": ({"a": {**entry("U8", [1], 0, 1), "dtype": 3}}, 1, "a", "header"),
    "no entry": ({"a": 3}, 0, "a", "header"),
    "no object": ([1], 0, None, "header"),
}


@pytest.mark.parametrize(("entries", "size", "tensor", "message"), BROKEN.values(), ids=[*BROKEN])
def test_what_is_broken_is_named(
    tmp_path: Path, entries: Any, size: int, tensor: str | None, message: str
) -> None:
    write(tmp_path / "file", entries, bytes(size))
    with pytest.raises(CheckpointError) as raised:
        TensorFile(tmp_path / "file")
    assert raised.value.tensor == tensor and raised.value.file == str(tmp_path / "file")
    assert "not a whole safetensors file" in str(raised.value) and message in str(raised.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        (2**40).to_bytes(8, "little") + b"{}",
        (2**63).to_bytes(8, "little"),
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        (2).to_bytes(8, "little") + b"\xff\xfe",
    ],
    ids=["empty", "longer than the file", "longest", "too deep", "no text"],
)
def test_a_header_that_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"/file: not a whole safetensors file: "):
        TensorFile(tmp_path / "file")


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, message in (
        ("folder", "not a file"),
        ("pipe", "not a file"),
        ("loop", "not readable: Too many levels of symbolic links"),
        ("nothing", "missing file"),
    ):
        with pytest.raises(CheckpointError, match=f"/{name}: {message}"):
            TensorFile(tmp_path / name)


def test_a_file_that_is_cut_after_it_was_opened(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, tmp_path / "file")
    file = TensorFile(tmp_path / "file")
    os.truncate(tmp_path / "file", (tmp_path / "file").stat().st_size - 4)
    assert torch.equal(file.read("a"), torch.ones(4))
    with pytest.raises(CheckpointError, match=r"b: not a whole .* ends 4 bytes too early"):
        file.read("b")


def test_a_type_that_is_not_known_stands_in_nobodys_way(tmp_path: Path) -> None:
    write(tmp_path / "file", {"a": entry("F4", [4], 0, 2), "b": entry("U8", [1], 2, 3)}, bytes(3))
    file = TensorFile(tmp_path / "file")
    assert file.read("b").tolist() == [0]
    with pytest.raises(CheckpointError, match="a: F4 is not a type"):
        file.read("a")


def memory() -> int:
    """Bytes of memory and swap."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "SwapTotal"))


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs Linux")
def test_a_file_larger_than_all_memory(tmp_path: Path) -> None:
    rows = 2 * memory() // 2**20
    file = tmp_path / "file"
    try:
        write_holes(file, {"large": ("F32", (rows, 2**18)), "small": ("U8", (3,))})
    except OSError as problem:  # of a file system that limits sizes, or has no holes and no room
        pytest.skip(f"the file system has no file of {rows} MiB, though of holes only: {problem}")
    if file.stat().st_blocks * 512 > 2**24:  # a file of that size is not for a test to write
        pytest.skip("the file system has no sparse files")
    with file.open("r+b") as stream:
        stream.seek(-3, os.SEEK_END)
        stream.write(b"\1\2\3")
        stream.seek(-7, os.SEEK_END)
        stream.write(b"\0\0\x80\x3f")
    opened = TensorFile(file)
    assert opened.read("small").tolist() == [1, 2, 3]
    last = opened.read("large", slice(rows - 1, rows))
    assert last.shape == (1, 2**18) and last[0, -1] == 1 and last.sum() == 1
    opened.close()
