"""Model folders: every published storage loads alike, every broken one says what is wrong."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hybrid.engine.load import load_engine
from hybrid.engine.model import EngineModel
from hybrid.errors import CheckpointError
from hybrid.gemma.model.gemma import GemmaModel, load_model
from tests.gemma.nvfp4_folders import (
    INDEX,
    SINGLE,
    edit_json,
    split_experts,
    tensors_of,
    write_nvfp4,
    write_shards,
)

Make = Callable[..., tuple[Any, Path]]
EXPERT = "model.decoder.layers.0.experts.1.gate_proj"


@pytest.fixture(scope="module")
def saved(make_diffusion: Make) -> Path:
    return make_diffusion()[1]


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A fresh copy of a good model folder, to break."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def quantized_folder(folder: Path) -> Path:
    write_nvfp4(folder, "modelopt")
    return folder


def answer(model: GemmaModel | EngineModel) -> Tensor:
    """What a model says to a fixed prompt and canvas, [6, V]."""
    with torch.inference_mode():
        cache = model.new_cache(1, 20)
        model.encode(torch.arange(3, 12)[None], [9], cache, [0])
        canvas = torch.arange(20, 26)[None]
        soft = model.soft_embed(torch.full((1, 6, 61), 1 / 61))
        return model.denoise(canvas, soft, cache, [0])[0]


@pytest.mark.parametrize("convention", ["modelopt", "compressed-tensors"])
def test_both_conventions_of_nvfp4(folder: Path, tmp_path: Path, convention: str) -> None:
    plain = Path(shutil.copytree(folder, tmp_path / "plain"))
    save_file(write_nvfp4(folder, convention), plain / SINGLE)
    torch.testing.assert_close(answer(load_model(folder)), answer(load_model(plain)))


def test_nvfp4_declared_in_the_older_file(quantized_folder: Path) -> None:
    expected = answer(load_model(quantized_folder))
    edit_json(quantized_folder / "config.json", quantization_config=None)
    declaration = {"quantization": {"quant_algo": "NVFP4", "group_size": 16}}
    (quantized_folder / "hf_quant_config.json").write_text(json.dumps(declaration))
    assert torch.equal(answer(load_model(quantized_folder)), expected)


def test_fused_and_single_experts_are_the_same_model(folder: Path) -> None:
    expected = answer(load_model(folder))
    save_file(split_experts(tensors_of(folder)), folder / SINGLE)
    assert torch.equal(answer(load_model(folder)), expected)


def test_shards_with_an_index(folder: Path) -> None:
    expected = answer(load_model(folder))
    write_shards(folder, 2)
    assert torch.equal(answer(load_model(folder)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_and_models(folder: Path, dtype: torch.dtype) -> None:
    rounded = {name: tensor.to(dtype) for name, tensor in tensors_of(folder).items()}
    save_file({name: tensor.float() for name, tensor in rounded.items()}, folder / SINGLE)
    expected = answer(load_model(folder))
    save_file(rounded, folder / SINGLE)
    assert torch.equal(answer(load_model(folder)), expected)
    half = load_model(folder, dtype=dtype)
    assert half.weights.embedding.dtype == dtype
    logits = answer(half)
    assert logits.dtype == torch.float32
    assert torch.cosine_similarity(logits, expected).mean() > 0.99


def test_the_conditional_generation_names(make_causal: Make, tmp_path: Path) -> None:
    _, folder = make_causal()
    nested = Path(shutil.copytree(folder, tmp_path / "nested"))
    config = json.loads((folder / "config.json").read_text())
    wrapped = {"model_type": "gemma4", "text_config": config, "eos_token_id": [1, 7]}
    (nested / "config.json").write_text(json.dumps(wrapped))
    (nested / "generation_config.json").unlink()
    tensors = {
        name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in tensors_of(folder).items()
    }
    tensors["model.vision_tower.patch_embedder.weight"] = torch.zeros(2)
    save_file(tensors, nested / SINGLE)
    one, other = load_model(folder), load_model(nested)
    assert other.config.end_token_ids == {1, 7}
    assert other.skipped_tensors == ("model.vision_tower.patch_embedder.weight",)
    with torch.inference_mode():
        ids = torch.arange(3, 9)[None]
        hidden = [model.encode(ids, [6], model.new_cache(1, 9), [0]) for model in (one, other)]
    assert torch.equal(*hidden)


def test_what_is_left_out_is_named(quantized_folder: Path) -> None:
    skipped = load_model(quantized_folder).skipped_tensors
    assert "model.encoder.embed_vision.embedding_projection.weight" in skipped
    assert f"{EXPERT}.input_scale" in skipped
    assert not any("weight_scale" in name or "language_model" in name for name in skipped)


def fails(folder: Path, file: str, *words: str) -> None:
    """Both stacks raise a CheckpointError about the file, with these words in its message."""
    cpu = torch.device("cpu")
    for load in (load_model, lambda path: load_engine(path, cpu, torch.float32)):
        with pytest.raises(CheckpointError) as raised:
            load(folder)
        assert Path(raised.value.file).name == file
        for word in words:
            assert word in str(raised.value)


def test_an_empty_folder(tmp_path: Path) -> None:
    fails(tmp_path, "config.json", "missing")


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / SINGLE).unlink()
    fails(folder, SINGLE, "missing file")


def test_a_missing_shard(folder: Path) -> None:
    write_shards(folder, 2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    fails(folder, "model-00002-of-00002.safetensors", "missing file")


def test_an_index_that_promises_too_much(folder: Path) -> None:
    write_shards(folder, 2)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.decoder.extra"] = "model-00001-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    fails(folder, "model-00001-of-00002.safetensors", "model.decoder.extra")


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "a/model.safetensors", "", ".", "/model.safetensors", None, 3]
)
def test_an_index_of_files_elsewhere(folder: Path, file: Any) -> None:
    write_shards(folder, 2)
    edit_index(folder, NORM, file)
    fails(folder, INDEX, NORM, f"{file!r} is not the name of a file of this folder")


def test_an_index_of_a_name_that_no_file_has(folder: Path) -> None:
    write_shards(folder, 2)
    edit_index(folder, NORM, "\0")
    fails(folder, "\0", "not readable")


def test_what_an_index_leaves_out_is_there(folder: Path) -> None:
    expected = answer(load_model(folder))
    write_shards(folder, 2)
    edit_index(folder, NORM)
    assert torch.equal(answer(load_model(folder)), expected)
    shard = folder / "model-00001-of-00002.safetensors"
    save_file({**load_file(shard), "model.decoder.extra": torch.zeros(3)}, shard)
    fails(folder, shard.name, "model.decoder.extra", "no place for")


def edit_index(folder: Path, tensor: str, *file: Any) -> None:
    """Say that a tensor is in another file, or nothing of it."""
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    del weight_map[tensor]
    weight_map |= dict.fromkeys([tensor], *file) if file else {}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_a_tensor_in_two_shards(folder: Path) -> None:
    write_shards(folder, 2)
    first, second = (folder / f"model-{number:05}-of-00002.safetensors" for number in (1, 2))
    name = min(load_file(first))
    save_file({**load_file(second), name: load_file(first)[name]}, second)
    fails(folder, second.name, name, f"is here too, though {INDEX} places it in {first.name}")


@pytest.mark.parametrize("name", [INDEX, "config.json", SINGLE])
def test_links_in_a_circle_folders_and_pipes_are_no_files(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(folder / name)
    fails(folder, name, "Too many levels of symbolic links")
    (folder / name).unlink()
    (folder / name).mkdir()
    fails(folder, name, "not a file")
    (folder / name).rmdir()
    os.mkfifo(folder / name)
    fails(folder, name, "not a file")


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', "{}", "[" * 100_000])
def test_an_index_that_is_none(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)
    fails(folder, INDEX, "not an index")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_file(folder: Path, keep: float) -> None:
    data = (folder / SINGLE).read_bytes()
    length = int(keep * len(data)) if isinstance(keep, float) else keep
    (folder / SINGLE).write_bytes(data[:length])
    fails(folder, SINGLE, "not a whole safetensors file")


NORM = "model.decoder.layers.1.input_layernorm.weight"
SCALE_2 = f"{EXPERT}.weight_scale_2"
EMBEDDING = "model.decoder.embed_tokens.weight"
MATRIX = "model.decoder.layers.1.self_attn.q_proj.weight"
SCALAR = "model.encoder.language_model.layers.2.layer_scalar"
EXPERT_SCALE = "model.decoder.layers.2.router.per_expert_scale"


def spoilt(tensor: Tensor) -> Tensor:
    """Its last number is infinite."""
    tensor.view(-1)[-1] = -torch.inf
    return tensor


BROKEN: dict[str, tuple[str, Callable[[Tensor], Tensor | None], str]] = {
    "missing tensor": (NORM, lambda t: None, "missing tensor"),
    "wrong shape": (NORM, lambda t: t[:-1].clone(), "expected shape [32], found [31]"),
    "wrong dtype": (NORM, lambda t: t.double(), "expected float32 or bfloat16 or float16"),
    "missing scale": (f"{EXPERT}.weight_scale", lambda t: None, "missing tensor"),
    "missing second scale": (SCALE_2, lambda t: None, "missing tensor"),
    "scale of another shape": (
        f"{EXPERT}.weight_scale",
        lambda t: t[:, :1].clone(),
        "expected shape [16, 2], found [16, 1]",
    ),
    "scale of another dtype": (
        f"{EXPERT}.weight_scale",
        lambda t: t.float(),
        "expected float8_e4m3fn, found float32",
    ),
    "NaN scale": (
        f"{EXPERT}.weight_scale",
        lambda t: torch.full_like(t.float(), torch.nan).to(t.dtype),
        "holds NaN",
    ),
    "infinite second scale": (SCALE_2, lambda t: t * torch.inf, "not above zero and finite"),
    "negative second scale": (SCALE_2, lambda t: -t, "not above zero and finite"),
    "zero second scale": (SCALE_2, lambda t: 0 * t, "not above zero and finite"),
    "NaN second scale": (SCALE_2, lambda t: t * torch.nan, "not above zero and finite"),
    "second scale without a reciprocal": (
        SCALE_2,
        lambda t: torch.full_like(t, 1e-39),
        "not above zero and finite",
    ),
    "second scale of infinite numbers": (
        SCALE_2,
        lambda t: torch.full_like(t, 1e36),
        "makes numbers that are not finite",
    ),
    "NaN in a norm": (NORM, lambda t: t / 0 * 0, "holds NaN or infinity"),
    "infinity in an embedding": (EMBEDDING, spoilt, "holds NaN or infinity"),
    "infinity in a matrix": (MATRIX, spoilt, "holds NaN or infinity"),
    "infinite scalar": (SCALAR, spoilt, "holds NaN or infinity"),
    "infinite scale of an expert": (EXPERT_SCALE, spoilt, "holds NaN or infinity"),
    "two second scales": (SCALE_2, lambda t: torch.stack((t, t)), "expected one number"),
    "half a packed matrix": (
        f"{EXPERT}.weight",
        lambda t: t[:, :8].clone(),
        "expected shape [16, 16], found [16, 8]",
    ),
}


@pytest.mark.parametrize(("name", "change", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_tensor(
    quantized_folder: Path, name: str, change: Callable[[Tensor], Tensor | None], message: str
) -> None:
    tensors = tensors_of(quantized_folder)
    changed = change(tensors.pop(name))
    if changed is not None:
        tensors[name] = changed
    save_file(tensors, quantized_folder / SINGLE)
    fails(quantized_folder, SINGLE, name, message)


@pytest.mark.parametrize("part", ["gate_up_proj", "down_proj"])
def test_infinity_in_fused_experts(folder: Path, part: str) -> None:
    tensors, name = tensors_of(folder), f"model.decoder.layers.1.experts.{part}"
    save_file({**tensors, name: spoilt(tensors[name])}, folder / SINGLE)
    fails(folder, SINGLE, name, "holds NaN or infinity")


def test_numbers_too_large_for_the_engine(folder: Path) -> None:
    """3.4e38 is a number in float32, and infinite in bfloat16."""
    tensors = tensors_of(folder)
    tensors[NORM][3] = 3.4e38
    save_file(tensors, folder / SINGLE)
    with pytest.raises(CheckpointError, match=f"{NORM}: holds NaN or infinity"):
        load_engine(folder, torch.device("cpu"), torch.bfloat16)


def test_a_quantized_matrix_without_its_codes(folder: Path) -> None:
    write_nvfp4(folder, "compressed-tensors")
    tensors = tensors_of(folder)
    del tensors[f"{EXPERT}.weight_packed"]
    save_file(tensors, folder / SINGLE)
    fails(folder, SINGLE, f"{EXPERT}.weight_packed: missing tensor")


def test_a_geometry_that_no_memory_has_room_for(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    text = {**config["text_config"], "moe_intermediate_size": 2**31}
    edit_json(folder / "config.json", text_config=text)
    fails(folder, SINGLE, "experts.gate_up_proj", f"expected shape [4, {2**32}, 32]")


def test_columns_that_are_no_multiple_of_sixteen(make_diffusion: Make, tmp_path: Path) -> None:
    _, saved = make_diffusion(moe_intermediate_size=24)
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    tensors = split_experts(tensors_of(folder))
    name = "model.decoder.layers.0.experts.0.down_proj.weight"
    tensors[name] = torch.zeros(32, 12, dtype=torch.uint8)
    save_file(tensors, folder / SINGLE)
    config = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    edit_json(folder / "config.json", quantization_config=config)
    fails(folder, SINGLE, name, "multiple of 16 columns, not 24")


def test_packed_weights_that_nothing_declares(quantized_folder: Path) -> None:
    edit_json(quantized_folder / "config.json", quantization_config=None)
    fails(quantized_folder, SINGLE, "expected float32 or bfloat16 or float16, found uint8")


@pytest.mark.parametrize(
    ("quantization", "key"),
    [
        ({"quant_method": "gptq"}, "quantization_config.quant_method"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "quantization_config.quant_algo"),
        ({"quant_method": "modelopt"}, "quantization_config.quant_algo"),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
            "quantization_config.format",
        ),
    ],
)
def test_a_quantization_that_is_not_known(
    folder: Path, quantization: dict[str, str], key: str
) -> None:
    edit_json(folder / "config.json", quantization_config=quantization)
    fails(folder, "config.json", key)


def test_a_tensor_without_a_place(folder: Path) -> None:
    name = "model.decoder.layers.0.per_layer_input_gate.weight"
    save_file({**tensors_of(folder), name: torch.zeros(2)}, folder / SINGLE)
    fails(folder, SINGLE, name, "no place for")


def test_a_dtype_that_models_do_not_have(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="int8"):
        load_model(folder, dtype=torch.int8)
