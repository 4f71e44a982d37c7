"""`hybrid quantize`: what it writes loads as what it says, here and in compressed-tensors."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hybrid.cli import main
from hybrid.engine.load import load_engine
from hybrid.gemma.checkpoint.mapping import map_tensors
from hybrid.gemma.checkpoint.nvfp4 import MatrixReader, read_convention
from hybrid.gemma.checkpoint.quantization_config import quantization_config
from hybrid.gemma.checkpoint.quantize import Job, Quantizer
from hybrid.gemma.checkpoint.resume_state import NAME as STATE
from hybrid.gemma.checkpoint.tensors import Checkpoint
from hybrid.gemma.config import GemmaConfig
from hybrid.gemma.model.gemma import load_model
from hybrid.kernels.nvfp4 import dequantize_torch, quantize_torch
from tests.gemma.nvfp4_folders import SINGLE, edit_json, split_experts
from tests.gemma.test_gemma_checkpoint import answer

Make = Callable[..., tuple[Any, Path]]
NAME = "model.decoder.layers.0.experts.1"
FORMATS = ("modelopt", "compressed-tensors")
DECLARED = quantization_config("compressed-tensors", ("experts", "mlp"))


@pytest.mark.parametrize("spelling", FORMATS)
def test_what_is_written_is_what_the_quantizer_says(
    make_diffusion: Make, tmp_path: Path, spelling: str
) -> None:
    source, target = make_diffusion()[1], tmp_path / "out"
    assert main(["quantize", str(source), str(target), "--format", spelling, "--only", "all"]) == 0
    map_tensors(target, GemmaConfig.from_directory(target))
    load_model(target)
    with safe_open(str(source / "model.safetensors"), framework="pt") as shard:
        fused = shard.get_tensor(NAME.replace(".1", ".gate_up_proj"))[1]
    expected = dequantize_torch(*quantize_torch(fused))
    checkpoint = Checkpoint(target)
    reader = MatrixReader(checkpoint, read_convention(target))
    parts = [reader.read(f"{NAME}.{part}_proj", (16, 32)) for part in ("gate", "up")]
    torch.testing.assert_close(torch.cat(parts), expected, rtol=2**-22, atol=0)
    assert not reader.is_quantized("model.decoder.self_conditioning.gate_proj")
    assert not (target / STATE).exists()


def test_an_interrupted_run_is_continued(make_diffusion: Make, tmp_path: Path) -> None:
    source, target = make_diffusion()[1], tmp_path / "out"
    job = Job(source, target, "modelopt", "experts")
    with Quantizer(job) as work:
        steps = work.steps("model.safetensors")
        next(steps)
    assert not (target / "model.safetensors").exists()
    with Quantizer(job) as again:
        assert again.unfinished == ["model.safetensors"]
        assert [*again.steps("model.safetensors")]
    with Quantizer(job) as last:
        assert last.unfinished == []
        assert 0.05 < last.finish()["experts"] < 0.15


def test_nonsense_is_refused(
    make_diffusion: Make,
    make_causal: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, target = str(make_diffusion()[1]), str(tmp_path / "out")

    def refused(*words: str) -> str:
        assert main(["quantize", *words]) == 2
        return capsys.readouterr().err

    assert "another target folder" in refused(source, source)
    assert "an empty folder" in refused(source, str(make_causal()[1]))
    assert "has no experts" in refused(str(make_causal()[1]), target)
    assert main(["quantize", source, target]) == 0
    capsys.readouterr()
    assert "is quantized already" in refused(target, str(tmp_path / "twice"))


@pytest.mark.parametrize("spoilt", ["layers.1.experts.down_proj", "layers.0.mlp.up_proj.weight"])
def test_numbers_that_are_not_finite_are_not_quantized(
    make_diffusion: Make, tmp_path: Path, spoilt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is a matrix whose partner holds one, as both have one factor."""
    source = Path(shutil.copytree(make_diffusion()[1], tmp_path / "source"))
    tensors = load_file(source / SINGLE)
    name = f"model.decoder.{spoilt}"
    tensors[name].view(-1)[5] = torch.nan
    save_file(tensors, source / SINGLE)
    target = tmp_path / "out"
    assert main(["quantize", str(source), str(target), "--only", "all"]) == 2
    printed = "".join(capsys.readouterr().err.split("\n"))
    assert f"{name}: holds NaN or infinity" in printed
    assert not (target / SINGLE).exists()


def test_the_library_decodes_it_alike(make_diffusion: Make, tmp_path: Path) -> None:
    library = pytest.importorskip("compressed_tensors.compressors.nvfp4.base")
    from compressed_tensors.quantization import QuantizationConfig

    source, target = make_diffusion()[1], tmp_path / "out"
    with Quantizer(Job(source, target, "compressed-tensors", "experts+mlp")) as work:
        assert [*work.steps("model.safetensors")]
        scheme = QuantizationConfig.model_validate(DECLARED).config_groups["group_0"]
        work.finish()
    checkpoint = Checkpoint(target)
    linear = f"{NAME}.down_proj"
    keys = ("weight_packed", "weight_scale", "weight_global_scale")
    state = {key: checkpoint.read(f"{linear}.{key}") for key in keys}
    theirs = library.NVFP4PackedCompressor.decompress(state, scheme)["weight"]
    ours = MatrixReader(checkpoint, "compressed-tensors").read(linear, (32, 16))
    # The library rounds to bfloat16.
    torch.testing.assert_close(theirs.float(), ours, rtol=2**-8, atol=0)


def test_a_checkpoint_by_the_library_is_read_as_the_library_reads_it(
    make_diffusion: Make, tmp_path: Path
) -> None:
    """Every expert and dense matrix compressed by compressed-tensors, on both stacks."""
    library = pytest.importorskip("compressed_tensors.compressors.nvfp4.base").NVFP4PackedCompressor
    from compressed_tensors.quantization import QuantizationConfig

    source = make_diffusion()[1]
    theirs = Path(shutil.copytree(source, tmp_path / "theirs"))
    scheme = QuantizationConfig.model_validate(DECLARED).config_groups["group_0"]
    stored: dict[str, torch.Tensor] = {}
    meant: dict[str, torch.Tensor] = {}
    for name, tensor in split_experts(load_file(source / SINGLE)).items():
        if not name.endswith(LINEARS) or "self_cond" in name or "vision" in name:
            stored[name] = tensor
            continue
        state = compressed(library, scheme, tensor)
        stored |= {f"{name.removesuffix('weight')}{key}": part for key, part in state.items()}
        meant[name.removesuffix(".weight")] = library.decompress(state, scheme)["weight"].float()
    save_file(stored, theirs / SINGLE)
    edit_json(theirs / "config.json", quantization_config=DECLARED)
    reader = MatrixReader(Checkpoint(theirs), read_convention(theirs))
    assert len(meant) == 3 * 3 * 5  # layers, projections, four experts and the dense branch
    for name, weight in meant.items():
        # The library rounds to bfloat16.
        torch.testing.assert_close(reader.read(name, weight.shape), weight, rtol=2**-8, atol=0)
    engine = load_engine(theirs, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(answer(engine), answer(load_model(theirs)), rtol=1e-4, atol=1e-4)


LINEARS = tuple(f"{part}_proj.weight" for part in ("gate", "up", "down"))


def compressed(library: Any, scheme: Any, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """One linear layer as the library stores it, with scales by its own convention."""
    outer = 448 * 6 / weight.abs().max().float().reshape(1)
    blocks = weight.float().reshape(len(weight), -1, 16).abs().amax(-1)
    scale = (blocks / 6 * outer).to(torch.float8_e4m3fn).float()
    state = {"weight": weight, "weight_scale": scale, "weight_global_scale": outer}
    done: dict[str, torch.Tensor] = library.compress(state, scheme)
    return {key: part.contiguous() for key, part in done.items()}
