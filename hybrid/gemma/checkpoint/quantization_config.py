"""The `quantization_config` section of a quantized folder's config.json, in either format."""

from collections.abc import Collection
from typing import Any, Literal

from hybrid.kernels.nvfp4 import BLOCK

Format = Literal["modelopt", "compressed-tensors"]
_NEVER = ("embed_vision", "router", "self_conditioning", "vision_tower")
_WORDS = {"mlp": "mlp", "attention": "self_attn"}


def quantization_config(format: Format, chosen: Collection[str]) -> dict[str, Any]:
    """`quantization_config` where `chosen` is 4-bit, of "experts", "mlp" and "attention"."""
    words = sorted((*_NEVER, *(word for part, word in _WORDS.items() if part not in chosen)))
    weights: dict[str, Any] = {"num_bits": 4, "type": "float", "group_size": BLOCK}
    weights["dynamic"] = False
    group = {"weights": weights, "input_activations": None, "targets": ["Linear"]}
    if format == "modelopt":
        return {
            "quant_method": "modelopt",
            "quant_algo": "NVFP4",
            "group_size": BLOCK,
            "config_groups": {"group_0": group},
            "ignore": ["lm_head", *(f"*{word}*" for word in words)],
            "producer": {"name": "hybrid"},
        }
    weights |= {"strategy": "tensor_group", "symmetric": True}
    weights["scale_dtype"] = "torch.float8_e4m3fn"
    return {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group | {"format": "nvfp4-pack-quantized"}},
        "ignore": ["lm_head", *(f"re:.*{word}.*" for word in words)],
        "kv_cache_scheme": None,
    }
