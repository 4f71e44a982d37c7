"""Every published spelling of the 26B-A4B models maps completely, by its headers alone."""

from pathlib import Path

import pytest

from hybrid.engine.memory import plan_memory
from hybrid.errors import CheckpointError
from hybrid.gemma.checkpoint.mapping import map_tensors
from hybrid.gemma.checkpoint.tensors import Checkpoint
from hybrid.gemma.config import GemmaConfig
from tests.gemma.published import Spelling, payload, write_checkpoint, write_holes

# Shards, tensors, bytes in the files, and bytes on a GPU: all but vision and activations' scales,
# with narrow matrices padded to whole tiles.
PUBLISHED: list[tuple[Spelling, bool, int, int, int, float]] = [
    ("bf16", True, 11, 1047, 51_647_562_456, 50.5e9),
    ("modelopt", True, 2, 47_067, 18_818_050_776, 17.74e9),
    ("compressed-tensors", True, 1, 47_337, 18_048_607_656, 16.97e9),
    ("bf16", False, 11, 1013, 51_611_872_412, 50.47e9),
    ("modelopt", False, 2, 47_033, 18_782_360_732, 17.7e9),
    ("compressed-tensors", False, 1, 47_303, 18_012_917_612, 16.93e9),
]


@pytest.mark.parametrize(
    ("spelling", "is_drafter", "shards", "tensors", "size", "device"), PUBLISHED
)
def test_every_tensor_has_a_place_or_is_named_as_left_out(
    tmp_path: Path,
    spelling: Spelling,
    is_drafter: bool,
    shards: int,
    tensors: int,
    size: int,
    device: float,
) -> None:
    header = write_checkpoint(tmp_path, spelling, is_drafter, shards)
    assert (len(header), payload(header)) == (tensors, size)
    config = GemmaConfig.from_directory(tmp_path)
    found = map_tensors(tmp_path, config)
    assert sorted((*found.read, *found.skipped)) == sorted(header)
    vision = [name for name in found.skipped if "vision" in name]
    assert len(vision) == 356
    assert all("input" in name for name in {*found.skipped} - {*vision})
    checkpoint = Checkpoint(tmp_path)
    plan = plan_memory(checkpoint, config)
    checkpoint.close()
    assert plan.weights == pytest.approx(device, rel=1e-3)
    print(f"{spelling}: {plan}")


def test_both_spellings_of_what_full_layers_do_differently(tmp_path: Path) -> None:
    configs = []
    for per_layer in (False, True):
        folder = tmp_path / str(per_layer)
        folder.mkdir()
        write_checkpoint(folder, "bf16", True, 11, per_layer)
        configs.append(GemmaConfig.from_directory(folder))
        map_tensors(folder, configs[-1])
    assert configs[0] == configs[1]


NAME = "model.decoder.layers.29.experts.127.down_proj"


@pytest.mark.parametrize(
    ("part", "form", "message"),
    [
        ("weight", None, "missing tensor"),
        ("weight_scale", None, "missing tensor"),
        ("weight_scale_2", None, "missing tensor"),
        ("weight_scale", ("F8_E4M3", (2816, 88)), "expected shape [2816, 44], found [2816, 88]"),
        ("weight_scale", ("BF16", (2816, 44)), "expected float8_e4m3fn, found bfloat16"),
        ("weight", ("U8", (2816, 176)), "expected shape [2816, 352], found [2816, 176]"),
        ("weight_scale_2", ("F32", (2816,)), "expected one number, found [2816]"),
        ("zero_point", ("U8", (1,)), "no place for"),
    ],
)
def test_mistakes_are_found_before_anything_is_read(
    tmp_path: Path, part: str, form: tuple[str, tuple[int, ...]] | None, message: str
) -> None:
    header = write_checkpoint(tmp_path, "modelopt", True, 1)
    header.pop(f"{NAME}.{part}", None)
    if form:
        header[f"{NAME}.{part}"] = form
    write_holes(tmp_path / "model.safetensors", header)
    with pytest.raises(CheckpointError) as raised:
        map_tensors(tmp_path, GemmaConfig.from_directory(tmp_path))
    assert message in str(raised.value)
    assert (raised.value.tensor or "").startswith(NAME)
    assert Path(raised.value.file).name == "model.safetensors"
