"""What `config.json` may say, and how it says what it may not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid.errors import CheckpointError
from hybrid.gemma.config import GemmaConfig, LayerConfig

SLIDING = LayerConfig("sliding", 256, 8, False, 10_000.0, 1.0)
FULL = LayerConfig("full", 512, 2, True, 1_000_000.0, 0.25)


def published() -> dict[str, Any]:
    """The published 26B-A4B checkpoint's configuration, as far as it is about text."""
    return {
        "model_type": "diffusion_gemma",
        "canvas_length": 256,
        "eos_token_id": [1, 106],
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "diffusion_gemma_text",
            "hidden_size": 2816,
            "num_hidden_layers": 30,
            "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5,
            "num_attention_heads": 16,
            "head_dim": 256,
            "num_key_value_heads": 8,
            "global_head_dim": 512,
            "num_global_key_value_heads": 2,
            "intermediate_size": 2112,
            "num_experts": 128,
            "top_k_experts": 8,
            "moe_intermediate_size": 704,
            "hidden_activation": "gelu_pytorch_tanh",
            "vocab_size": 262144,
            "sliding_window": 1024,
            "max_position_embeddings": 262144,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {
                    "rope_type": "proportional",
                    "partial_rotary_factor": 0.25,
                    "rope_theta": 1000000.0,
                },
            },
            "rms_norm_eps": 1e-6,
            "final_logit_softcapping": 30.0,
            "use_bidirectional_attention": "vision",
            "attention_bias": False,
            "pad_token_id": 0,
            "eos_token_id": 1,
        },
    }


def load(folder: Path, config: Any) -> GemmaConfig:
    (folder / "config.json").write_text(json.dumps(config))
    return GemmaConfig.from_directory(folder)


def test_the_published_configuration(tmp_path: Path) -> None:
    config = load(tmp_path, published())
    assert config.architecture == "diffusion_gemma"
    assert config.layers == ((SLIDING,) * 5 + (FULL,)) * 5
    assert (config.num_experts, config.top_k_experts, config.canvas_length) == (128, 8, 256)
    assert config.end_token_ids == {1, 106}


def test_both_spellings_of_single_layers(tmp_path: Path) -> None:
    config = published()
    text = config["text_config"]
    del text["global_head_dim"], text["num_global_key_value_heads"]
    text["per_layer_config"] = {
        str(index): {"head_dim": 512, "num_key_value_heads": 2} for index in range(5, 30, 6)
    }
    assert load(tmp_path, config) == load(tmp_path, published())


def test_the_generation_configuration_knows_the_end_tokens(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 106, 50]}')
    assert load(tmp_path, published()).end_token_ids == {1, 106, 50}


def test_what_transformers_writes_is_what_it_meant(
    make_causal: Callable[..., tuple[Any, Path]],
) -> None:
    model, folder = make_causal(attention_k_eq_v=False)
    config = GemmaConfig.from_directory(folder)
    assert config.architecture == "gemma4"
    assert (config.num_experts, config.canvas_length) == (0, 0)
    for index, layer in enumerate(config.layers):
        attention = model.model.layers[index].self_attn
        assert layer.head_dim == attention.head_dim
        assert layer.num_key_value_heads * layer.head_dim == attention.k_proj.out_features
        assert layer.key_is_value == (attention.v_proj is None) is False


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "per-layer embeddings": ({"hidden_size_per_layer_input": 256}, "hidden_size_per_layer_input"),
    "shared keys": ({"num_kv_shared_layers": 18}, "num_kv_shared_layers"),
    "double-wide": ({"use_double_wide_mlp": True}, "use_double_wide_mlp"),
    "bias": ({"attention_bias": True}, "attention_bias"),
    "untied": ({"tie_word_embeddings": False}, "tie_word_embeddings"),
    "all bidirectional": ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
    "another activation": ({"hidden_activation": "silu"}, "hidden_activation"),
    "no size": ({"hidden_size": None}, "hidden_size"),
    "a size as text": ({"hidden_size": "2816"}, "hidden_size"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers"),
    "other count of layers": ({"num_hidden_layers": 29}, "layer_types: 30 entries"),
    "unknown layer": ({"layer_types": ["linear_attention"] * 30}, "linear_attention"),
    "too many chosen": ({"top_k_experts": 129}, "top_k_experts"),
    "odd head": ({"head_dim": 255}, "head_dim"),
    "heads that do not divide": ({"num_key_value_heads": 3}, "num_key_value_heads"),
    "negative epsilon": ({"rms_norm_eps": -1e-6}, "rms_norm_eps"),
    "epsilon above one": ({"rms_norm_eps": 1.5}, "rms_norm_eps"),
    "cap beyond float32": ({"final_logit_softcapping": 1e308}, "final_logit_softcapping"),
    "context below the canvas": ({"max_position_embeddings": 255}, "canvas_length: 256 is more"),
    "zero cap": ({"final_logit_softcapping": 0}, "final_logit_softcapping"),
    "layer out of range": ({"per_layer_config": {"30": {}}}, "per_layer_config.30"),
    "layer by name": ({"per_layer_config": {"full": {}}}, "per_layer_config.full"),
    "unknown for a layer": (
        {"per_layer_config": {"5": {"sliding_window": 3}}},
        "per_layer_config.*.sliding_window",
    ),
    "no rotary": ({"rope_parameters": {}}, "rope_parameters.sliding_attention: missing"),
    "scaled rotary": (
        {"rope_parameters": {"sliding_attention": {"rope_type": "yarn", "rope_theta": 1e4}}},
        "rope_parameters.sliding_attention.rope_type: 'yarn'",
    ),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD.keys())
def test_what_is_not_supported_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = published()
    config["text_config"].update(changes)
    with pytest.raises(CheckpointError) as raised:
        load(tmp_path, config)
    assert raised.value.file == str(tmp_path / "config.json")
    assert f"text_config.{message}" in str(raised.value) or message in str(raised.value)


@pytest.mark.parametrize("key", sorted(published()["text_config"]))
def test_a_missing_key_is_named_or_does_not_matter(tmp_path: Path, key: str) -> None:
    config = published()
    del config["text_config"][key]
    harmless = {
        "model_type",
        "eos_token_id",
        "attention_bias",
        "hidden_activation",
        "use_bidirectional_attention",
    }
    if key in harmless:
        assert load(tmp_path, config) == load(tmp_path, published())
    elif key == "num_global_key_value_heads":
        assert load(tmp_path, config).layers[5].num_key_value_heads == 8
    else:
        with pytest.raises(CheckpointError, match=f"{key}: missing"):
            load(tmp_path, config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not readable as JSON"),
        ("{", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("[1]", "not a JSON object"),
        ('{"model_type": "llama"}', "model_type: 'llama' is not one of diffusion_gemma"),
        ('{"model_type": "diffusion_gema"}', "did you mean 'diffusion_gemma'"),
        ("{}", "model_type: missing"),
        ('{"model_type": "gemma4"}', "text_config: missing"),
    ],
)
def test_files_that_are_no_gemma(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError) as raised:
        GemmaConfig.from_directory(tmp_path)
    assert message in str(raised.value)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 10**400, 0, -1.0, True, "1"])
def test_numbers_that_are_none(tmp_path: Path, value: Any) -> None:
    config = published()
    config["text_config"]["rms_norm_eps"] = value
    with pytest.raises(CheckpointError, match=r"rms_norm_eps: .* is not a number above 0"):
        load(tmp_path, config)
    config = published()
    config["text_config"]["hidden_size"] = value
    with pytest.raises(CheckpointError, match=r"hidden_size: .* is not a whole number from 1"):
        load(tmp_path, config)


@pytest.mark.parametrize("fraction", [None, 0, 1.5, "0.25"])
def test_rotary_fractions_that_are_none(tmp_path: Path, fraction: Any) -> None:
    """A missing one is no 1 either: no published model rotates full layers' heads whole."""
    key = r"rope_parameters.full_attention.partial_rotary_factor"
    config = published()
    rope = config["text_config"]["rope_parameters"]["full_attention"]
    rope["partial_rotary_factor"] = fraction
    with pytest.raises(CheckpointError, match=f"{key}: .* is not a number above 0 and at most 1"):
        load(tmp_path, config)
    del rope["partial_rotary_factor"]
    with pytest.raises(CheckpointError, match=f"{key}: missing"):
        load(tmp_path, config)


@pytest.mark.parametrize("ids", [[], ["<eos>"], "1"])
def test_end_tokens_that_are_none(tmp_path: Path, ids: Any) -> None:
    with pytest.raises(CheckpointError, match="eos_token_id"):
        load(tmp_path, {**published(), "eos_token_id": ids})
