"""`hybrid inspect`: what a folder holds, from headers alone."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from hybrid.cli import main
from hybrid.cli.inspect import inspect_folder
from hybrid.embedded import weights_path
from hybrid.errors import CheckpointError
from hybrid.gemma.checkpoint.tensors import SINGLE


def test_the_embedded_drafter_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(weights_path("drafter"))]) == 0
    out = capsys.readouterr().out
    for words in (
        "diffusion_gemma, a drafter",
        "4: 2 full, 2 sliding over 96 tokens",
        "4, 2 active",
        "1,024 tokens, canvas 32",
        "NVFP4 as modelopt spells it",
        "1.2 M parameters",
        "fits in 8 GB",
        "on a GPU",
        "of keys and values (1 x 4096 tokens)",
    ):
        assert words in out


@pytest.mark.parametrize("role", ["drafter", "refiner"])
def test_every_parameter_is_counted_once(role: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from hybrid.gemma.reference.huggingface import load_hf_reference

    folder = weights_path(role)
    assert main(["inspect", str(folder), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["parameters"] == sum(part["parameters"] for part in record["parts"])
    reference = load_hf_reference(folder)
    expected = sum(p.numel() for n, p in reference.named_parameters() if "vision" not in n)
    assert abs(record["parameters"] - expected) <= 16  # layers' scalars are buffers in between
    sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]
    assert 0 <= sum(sizes) - record["stored_bytes"] < 200_000  # the rest is the header


def test_other_geometries_and_unquantized_folders(
    make_diffusion: Callable[..., tuple[Any, Path]], make_causal: Callable[..., tuple[Any, Path]]
) -> None:
    drafter = inspect_folder(make_diffusion()[1])
    assert (drafter.role, drafter.quantization, drafter.canvas_length) == ("drafter", "none", 6)
    assert {part.name for part in drafter.parts} >= {"vision", "experts", "self-conditioning"}
    assert not [part for part in drafter.parts if part.name == "other"]
    refiner = inspect_folder(make_causal()[1])
    assert (refiner.role, refiner.experts) == ("refiner", "none")


def test_the_chat_template_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--org--name" / "snapshots" / commit
    shutil.copytree(weights_path("refiner"), folder)
    text = (folder / "chat_template.jinja").read_bytes()
    found = inspect_folder(folder)
    assert found.template == hashlib.sha256(text).hexdigest()
    assert found.template_revision == commit
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"sha256 {found.template[:16]}" in out and commit[:20] in out
    (folder / "chat_template.jinja").write_text("{% if {")
    with pytest.raises(CheckpointError, match="chat_template"):
        inspect_folder(folder)


def test_damaged_folders_are_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error_of(folder: Path) -> str:
        assert main(["inspect", str(folder)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        return err

    assert "missing; is this a model folder?" in error_of(tmp_path / "nowhere")
    folder = tmp_path / "model"
    shutil.copytree(weights_path("drafter"), folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "not a whole safetensors file" in error_of(folder)
    weights.unlink()
    assert "model.safetensors: missing file" in error_of(folder)
    (folder / "config.json").write_text("{]")
    assert "not readable as JSON" in error_of(folder)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (".weight_scale", lambda t: None, "missing tensor"),
        (".weight_scale", lambda t: t.float(), "expected float8_e4m3fn, found float32"),
        (".weight", lambda t: t[:, 1:].clone(), "expected shape [64, 64], found [64, 63]"),
    ],
)
def test_what_headers_show_not_to_load_is_an_error(
    tmp_path: Path, part: str, change: Callable[[Tensor], Tensor | None], message: str
) -> None:
    folder = Path(shutil.copytree(weights_path("drafter"), tmp_path / "model"))
    tensors = load_file(folder / SINGLE)
    name = f"model.decoder.layers.0.experts.0.gate_proj{part}"
    changed = change(tensors.pop(name))
    save_file(tensors if changed is None else {**tensors, name: changed}, folder / SINGLE)
    with pytest.raises(CheckpointError) as raised:
        inspect_folder(folder)
    assert (raised.value.file, raised.value.tensor) == (str(folder / SINGLE), name)
    assert message in str(raised.value)
