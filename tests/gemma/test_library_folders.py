"""Folders as transformers and tokenizers write them, and as other programs do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hybrid.conversation.tokenizer import ChatTokenizer
from hybrid.embedded import weights_path
from hybrid.engine.load import load_engine
from hybrid.errors import CheckpointError
from hybrid.gemma.checkpoint.quantize import Job, Quantizer
from hybrid.gemma.checkpoint.tensors import SINGLE
from hybrid.gemma.config import GemmaConfig
from hybrid.gemma.model.gemma import load_model
from hybrid.gemma.reference.huggingface import load_hf_reference
from hybrid.refiners.huggingface import HuggingFaceRefiner
from tests.conftest import BASE, GEMMA4, VISION
from tests.gemma.nvfp4_folders import edit_json
from tests.gemma.test_gemma_checkpoint import answer

Make = Callable[..., tuple[Any, Path]]
ENCODER, DECODER = "model.encoder.language_model.", "model.decoder."
TIED = f"{DECODER}layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def saved(make_diffusion: Make) -> Path:
    return make_diffusion()[1]


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, {"format": "pt"})


@pytest.mark.parametrize("layers", [3, 11, 120])
def test_layers_of_their_own_as_transformers_numbers_them(tmp_path: Path, layers: int) -> None:
    """From eleven layers on its keys are padded: "05"."""
    from transformers import Gemma4TextConfig

    kinds = ["full_attention", "sliding_attention"] * 60
    kinds[layers - 1] = "full_attention"
    given = {**BASE, **GEMMA4, "num_hidden_layers": layers, "layer_types": kinds[:layers]}
    Gemma4TextConfig(**given).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())["per_layer_config"]
    assert (min(map(len, written)) > 1) == (layers > 10)
    config = GemmaConfig.from_directory(tmp_path)
    for kind, layer in zip(kinds, config.layers, strict=False):
        expected = (32, 1) if kind == "full_attention" else (16, 2)
        assert (layer.head_dim, layer.num_key_value_heads) == expected


@pytest.mark.parametrize("keys", [["1", "01"], ["3"], ["-1"], ["1.0"], ["\u0661"], ["9" * 5000]])
def test_layers_that_are_none(tmp_path: Path, make_causal: Make, keys: list[str]) -> None:
    folder = Path(shutil.copytree(make_causal()[1], tmp_path / "model"))
    edit_json(folder / "config.json", per_layer_config={key: {"head_dim": 16} for key in keys})
    with pytest.raises(CheckpointError, match="per_layer_config"):
        GemmaConfig.from_directory(folder)


@pytest.mark.parametrize("role", ["drafter", "refiner"])
def test_truncation_and_padding_that_were_saved_are_not_obeyed(tmp_path: Path, role: Any) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    folder = Path(shutil.copytree(weights_path(role), tmp_path / "model"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(folder / "tokenizer.json"))
    text = "list 5 metals, not iron or copper or gold or tin"
    ids = ChatTokenizer.from_directory(folder).encode(text)
    assert ids == AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False).input_ids
    assert 8 < len(ids) < 50


def test_tied_tensors_under_the_encoders_names(saved: Path, folder: Path) -> None:
    """As llm-compressor 0.14 writes DiffusionGemma."""
    own = ("layer_scalar", "self_conditioning.")

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(DECODER)]:
            if not any(part in name for part in own):
                tensors[name.replace(DECODER, ENCODER)] = tensors.pop(name)

    rewrite(folder, rename)
    assert torch.equal(answer(load_model(folder)), answer(load_model(saved)))
    assert torch.equal(answer(of_engine(folder)), answer(of_engine(saved)))
    state = load_hf_reference(folder).state_dict()
    for name, tensor in load_hf_reference(saved).state_dict().items():
        assert "vision" in name or torch.equal(state[name], tensor), name


def of_engine(folder: Path) -> Any:
    return load_engine(folder, torch.device("cpu"), torch.float32)


def twice(tensors: dict[str, Tensor]) -> None:
    tensors[TIED.replace(DECODER, ENCODER)] = tensors[TIED].clone()
    tensors["lm_head.weight"] = tensors[f"{DECODER}embed_tokens.weight"].clone()


def test_tied_tensors_that_are_stored_twice(saved: Path, folder: Path, tmp_path: Path) -> None:
    rewrite(folder, twice)
    assert torch.equal(answer(load_model(folder)), answer(load_model(saved)))
    assert torch.equal(answer(of_engine(folder)), answer(of_engine(saved)))
    with Quantizer(Job(folder, tmp_path / "out", "modelopt", "experts+mlp")) as work:
        assert [*work.steps(SINGLE)]
        work.finish()
    assert "lm_head.weight" not in load_file(tmp_path / "out" / SINGLE)
    assert load_model(tmp_path / "out").config == GemmaConfig.from_directory(saved)


@pytest.mark.parametrize("name", [TIED.replace(DECODER, ENCODER), "lm_head.weight"])
@pytest.mark.parametrize("what", ["value", "shape"])
def test_tied_tensors_that_differ(folder: Path, tmp_path: Path, name: str, what: str) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        twice(tensors)
        if what == "value":
            tensors[name].view(-1)[-1] += 1
        else:
            tensors[name] = tensors[name][:-1].clone()

    rewrite(folder, change)
    other = TIED if "up_proj" in name else f"{DECODER}embed_tokens.weight"
    for load in (load_model, of_engine, load_hf_reference):
        with pytest.raises(CheckpointError, match=other) as caught:
            load(folder)
        assert name in str(caught.value)
    with pytest.raises(CheckpointError, match=other):
        Quantizer(Job(folder, tmp_path / "out", "modelopt", "all"))


def test_an_output_head_alone_is_the_embedding(tmp_path: Path, make_causal: Make) -> None:
    model, saved = make_causal()
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    rewrite(folder, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    assert torch.equal(load_model(folder).weights.embedding, model.lm_head.weight)


def test_placeholders_of_images_are_embedded_as_padding(tmp_path: Path) -> None:
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    torch.manual_seed(0)
    ids = {"image_token_id": 40, "video_token_id": 41, "audio_token_id": 42}
    parts = {"text_config": {**BASE, **GEMMA4}, "vision_config": VISION}
    config = Gemma4Config(**parts, **ids, boi_token_id=43, eoi_token_id=44)
    config._experts_implementation = "eager"
    model = Gemma4ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    prompt = torch.tensor([[2, 5, 40, 7, 41, 9, 42, 42, 11]])
    with torch.inference_mode():
        expected = model(prompt).logits
        for ours in (load_model(tmp_path), of_engine(tmp_path)):
            hidden = ours.encode(prompt, [9], ours.new_cache(1, 16), [0])
            torch.testing.assert_close(ours.logits(hidden), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("model-Q4_K_M.gguf", "GGUF", "llama.cpp.*safetensors"),
        ("pytorch_model-00001-of-00002.bin", "", "pickled.*safetensors"),
    ],
)
def test_other_formats_say_what_to_do(folder: Path, file: str, text: str, message: str) -> None:
    (folder / SINGLE).unlink()
    (folder / file).write_text(text)
    for load in (load_model, of_engine, load_hf_reference):
        with pytest.raises(CheckpointError, match=f"(?s){file}.*{message}"):
            load(folder)


def test_mlx_folders_say_what_to_do(folder: Path) -> None:
    edit_json(folder / "config.json", quantization={"group_size": 64, "bits": 4})
    for load in (load_model, load_hf_reference):
        with pytest.raises(CheckpointError, match=r"quantization: an MLX folder.*safetensors"):
            load(folder)


@pytest.mark.parametrize("suffix", ["kv_scale", "output_scale"])
def test_scales_of_a_cache_say_what_to_do(folder: Path, suffix: str) -> None:
    name = f"{DECODER}layers.0.self_attn.{suffix}"
    rewrite(folder, lambda tensors: tensors.update({name: torch.ones(1)}))
    with pytest.raises(CheckpointError, match=f"{suffix}.*without kv_cache_scheme"):
        load_model(folder)


@pytest.mark.parametrize(
    "setting",
    [
        {"_attn_implementation": "org/kernel"},
        {"attn_implementation": "flash_attention_2"},
        {"text_config": {"_attn_implementation_internal": "kernels-community/flash-attn"}},
        {"attn_implementation": {"text_config": "org/kernel@main:f"}},
        {"experts_implementation": "org/kernel"},
        {"auto_map": {"AutoModel": "modeling.py:Model"}},
        {"sub": [{"auto_map": "modeling.Model"}]},
        {"use_kernels": True},
        {"transformers_weights": "../other.safetensors"},
        {"quantization_config": {"quant_method": "fp8"}},
    ],
)
def test_settings_that_load_code_are_refused(folder: Path, setting: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    text = {**config["text_config"], **setting.pop("text_config", {})}
    edit_json(folder / "config.json", text_config=text, **setting)
    with pytest.raises(CheckpointError, match=r"config\.json.*(remove it|hub)"):
        load_hf_reference(folder)
    edit_json(folder / "config.json", architectures=["Gemma4ForConditionalGeneration"])
    with pytest.raises(CheckpointError, match=r"config\.json.*(remove it|hub)"):
        HuggingFaceRefiner.from_directory(folder, "cpu")


def test_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/other"}')
    with pytest.raises(CheckpointError, match="adapter_config"):
        load_hf_reference(folder)
