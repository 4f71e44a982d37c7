"""The published 26B-A4B checkpoints without numbers: true headers over files full of holes."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

Spelling = Literal["bf16", "modelopt", "compressed-tensors"]
Header = dict[str, tuple[str, tuple[int, ...]]]

HIDDEN, LAYERS, EXPERTS, INNER, DENSE, VOCABULARY = 2816, 30, 128, 704, 2112, 262144
FULL = (5, 11, 17, 23, 29)
SIZES = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "U8": 1}
QUANTIZATION: dict[Spelling, dict[str, Any] | None] = {
    "bf16": None,
    "modelopt": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
}


def text_config(is_drafter: bool, per_layer: bool) -> dict[str, Any]:
    """`text_config` in either spelling of what full layers do differently."""
    config: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "layer_types": [
            "full_attention" if layer in FULL else "sliding_attention" for layer in range(LAYERS)
        ],
        "num_attention_heads": 16,
        "head_dim": 256,
        "num_key_value_heads": 8,
        "intermediate_size": DENSE,
        "num_experts": EXPERTS,
        "top_k_experts": 8,
        "moe_intermediate_size": INNER,
        "hidden_activation": "gelu_pytorch_tanh",
        "vocab_size": VOCABULARY,
        "sliding_window": 1024,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "final_logit_softcapping": 30.0,
        "pad_token_id": 0,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1_000_000.0,
            },
        },
    }
    if per_layer:
        own = {"head_dim": 512, "num_key_value_heads": 2}
        config["per_layer_config"] = {str(layer): own for layer in FULL}
    else:
        config |= {"global_head_dim": 512, "num_global_key_value_heads": 2}
    if not is_drafter:
        config |= {"attention_k_eq_v": True, "enable_moe_block": True}
    return config


def linear(name: str, rows: int, columns: int, spelling: Spelling) -> Header:
    """The tensors of one linear layer."""
    if spelling == "bf16":
        return {f"{name}.weight": ("BF16", (rows, columns))}
    scales = {f"{name}.weight_scale": ("F8_E4M3", (rows, columns // 16))}
    packed = ("U8", (rows, columns // 2))
    if spelling == "modelopt":
        scalars = {f"{name}.{part}": ("F32", ()) for part in ("weight_scale_2", "input_scale")}
        return {f"{name}.weight": packed, **scales, **scalars}
    parts = ("weight_global_scale", "input_global_scale")
    return {
        f"{name}.weight_packed": packed,
        **scales,
        **{f"{name}.{p}": ("F32", (1,)) for p in parts},
    }


def gated(prefix: str, inner: int, spelling: Spelling) -> Header:
    return {
        **linear(f"{prefix}gate_proj", inner, HIDDEN, spelling),
        **linear(f"{prefix}up_proj", inner, HIDDEN, spelling),
        **linear(f"{prefix}down_proj", HIDDEN, inner, spelling),
    }


def layer(prefix: str, index: int, spelling: Spelling) -> Header:
    head_dim, queries, keys = (512, 8192, 1024) if index in FULL else (256, 4096, 2048)
    norms = [f"{when}_{part}layernorm" for when in ("pre", "post") for part in ("feedforward_",)]
    norms += ["input_layernorm", "post_attention_layernorm", "post_feedforward_layernorm_1"]
    norms += ["pre_feedforward_layernorm_2", "post_feedforward_layernorm_2"]
    header: Header = {f"{prefix}{norm}.weight": ("BF16", (HIDDEN,)) for norm in norms}
    attention = {"q_proj": (queries, HIDDEN), "k_proj": (keys, HIDDEN), "o_proj": (HIDDEN, queries)}
    if index not in FULL:
        attention["v_proj"] = (keys, HIDDEN)
    for name, (rows, columns) in attention.items():
        header |= linear(f"{prefix}self_attn.{name}", rows, columns, "bf16")
    header |= {f"{prefix}self_attn.{n}_norm.weight": ("BF16", (head_dim,)) for n in "qk"}
    header |= gated(f"{prefix}mlp.", DENSE, "bf16" if spelling == "modelopt" else spelling)
    header |= {
        f"{prefix}router.proj.weight": ("BF16", (EXPERTS, HIDDEN)),
        f"{prefix}router.scale": ("BF16", (HIDDEN,)),
        f"{prefix}router.per_expert_scale": ("BF16", (EXPERTS,)),
        f"{prefix}layer_scalar": ("BF16", (1,)),
    }
    if spelling == "bf16":
        header[f"{prefix}experts.gate_up_proj"] = ("BF16", (EXPERTS, 2 * INNER, HIDDEN))
        header[f"{prefix}experts.down_proj"] = ("BF16", (EXPERTS, HIDDEN, INNER))
    else:
        for expert in range(EXPERTS):
            header |= gated(f"{prefix}experts.{expert}.", INNER, spelling)
    return header


def vision(prefix: str) -> Header:
    """355 tensors of the tower, with as many numbers as there are, and the projector."""
    header: Header = {f"{prefix}vision_tower.std_{s}": ("BF16", (1152,)) for s in ("bias", "scale")}
    numbers = 572_792_112 - HIDDEN * 1152 - 352
    header |= {f"{prefix}vision_tower.{i}.weight": ("BF16", (1,)) for i in range(352)}
    header[f"{prefix}vision_tower.rest"] = ("BF16", (numbers,))
    header[f"{prefix}embed_vision.embedding_projection.weight"] = ("BF16", (HIDDEN, 1152))
    return header


def checkpoint_header(spelling: Spelling, is_drafter: bool) -> Header:
    """Every tensor's stored type and shape."""
    stack = "model.decoder." if is_drafter else "model.language_model."
    header: Header = {
        f"{stack}embed_tokens.weight": ("BF16", (VOCABULARY, HIDDEN)),
        f"{stack}norm.weight": ("BF16", (HIDDEN,)),
    }
    for index in range(LAYERS):
        header |= layer(f"{stack}layers.{index}.", index, spelling)
    if is_drafter:
        header[f"{stack}self_conditioning.pre_norm.weight"] = ("BF16", (HIDDEN,))
        header |= gated(f"{stack}self_conditioning.", DENSE, "bf16")
        for index in range(LAYERS):
            name = f"model.encoder.language_model.layers.{index}.layer_scalar"
            header[name] = ("BF16", (1,))
    return header | vision("model.encoder." if is_drafter else "model.")


def payload(header: Header) -> int:
    """Bytes of all tensors."""
    return sum(SIZES[dtype] * math.prod(shape) for dtype, shape in header.values())


def write_holes(file: Path, header: Header) -> None:
    """A safetensors file with this header, whose numbers take no room on the disk."""
    entries: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in sorted(header.items(), key=lambda item: -SIZES[item[1][0]]):
        start, end = end, end + SIZES[dtype] * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


def write_ones(file: Path, header: Header) -> None:
    """Make ones of the float32 numbers, which come first: every last factor."""
    count = sum(math.prod(shape) for dtype, shape in header.values() if dtype == "F32")
    with file.open("r+b") as stream:
        stream.seek(8 + int.from_bytes(stream.read(8), "little"))
        stream.write(b"\0\0\x80\x3f" * count)


def shards(header: Header, count: int) -> Iterator[Header]:
    """The tensors in `count` shares, in order."""
    names = [*header]
    step = -(-len(names) // count)
    for start in range(0, len(names), step):
        yield {name: header[name] for name in names[start : start + step]}


def write_checkpoint(
    folder: Path, spelling: Spelling, is_drafter: bool, count: int, per_layer: bool = False
) -> Header:
    """A model folder of `count` shards; returns its header."""
    top: dict[str, Any] = {"model_type": "diffusion_gemma", "canvas_length": 256}
    if not is_drafter:
        top = {"model_type": "gemma4"}
    top |= {"eos_token_id": [1, 106], "text_config": text_config(is_drafter, per_layer)}
    if QUANTIZATION[spelling]:
        top["quantization_config"] = QUANTIZATION[spelling]
    (folder / "config.json").write_text(json.dumps(top))
    header = checkpoint_header(spelling, is_drafter)
    if count == 1:
        write_holes(folder / "model.safetensors", header)
        return header
    weight_map: dict[str, str] = {}
    for number, share in enumerate(shards(header, count), 1):
        file = f"model-{number:05}-of-{count:05}.safetensors"
        write_holes(folder / file, share)
        weight_map.update(dict.fromkeys(share, file))
    index = {"metadata": {"total_size": payload(header)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return header
