"""The pair's two models as transformers builds them, made ready to train.

Two things differ from what transformers would do. The few, small experts run densely, all of them
weighted by the router: the same result, several times faster at this size. And once `StoredWeights`
is on, the matrices that will be shipped in NVFP4 act as if they already were, with gradients
passing straight through.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import (
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    DiffusionGemmaTextConfig,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    Gemma4VisionConfig,
)

from hybrid.kernels.nvfp4 import dequantize_torch, quantize_torch
from training.tokenizer import BOS, EOS, PAD, SPECIAL_TOKENS

CANVAS_LENGTH = 32
SOFTCAP = 30.0


def build_drafter(vocabulary: int) -> Any:
    """A DiffusionGemma of 1.2 M parameters: 4 layers of 128, 4 experts, 2 of them active."""
    text = DiffusionGemmaTextConfig(
        **_geometry(vocabulary, hidden=128, layers=4, heads=4, key_value_heads=2, dense=256),
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=64,
    )
    unused_vision = Gemma4VisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        patch_size=4,
        position_embedding_size=8,
    )
    config = DiffusionGemmaConfig(
        text_config=text,
        vision_config=unused_vision,
        canvas_length=CANVAS_LENGTH,
        boi_token_id=SPECIAL_TOKENS.index("<boi>"),
        eoi_token_id=SPECIAL_TOKENS.index("<eoi>"),
        image_token_id=SPECIAL_TOKENS.index("<image>"),
    )
    config._attn_implementation = "sdpa"
    config._experts_implementation = "eager"
    return _prepare(DiffusionGemmaForBlockDiffusion(config))


def build_refiner(vocabulary: int) -> Any:
    """A dense Gemma 4 of 1.8 M parameters: 6 layers of 160."""
    config = Gemma4TextConfig(
        **_geometry(vocabulary, hidden=160, layers=6, heads=5, key_value_heads=1, dense=448),
        num_experts=None,
        top_k_experts=None,
        moe_intermediate_size=None,
        enable_moe_block=False,
        attention_k_eq_v=True,
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
        vocab_size_per_layer_input=vocabulary,
    )
    config._attn_implementation = "sdpa"
    return _prepare(Gemma4ForCausalLM(config))


def _geometry(
    vocabulary: int, hidden: int, layers: int, heads: int, key_value_heads: int, dense: int
) -> dict[str, Any]:
    rope = {"rope_theta": 10_000.0}
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "layer_types": (["sliding_attention", "full_attention"] * layers)[:layers],
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "num_global_key_value_heads": 1,
        "head_dim": 32,
        "global_head_dim": 32,
        "intermediate_size": dense,
        "sliding_window": 96,
        "max_position_embeddings": 1024,
        "final_logit_softcapping": SOFTCAP,
        "initializer_range": hidden**-0.5,
        "tie_word_embeddings": True,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": BOS,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", **rope},
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.5,
                **rope,
            },
        },
    }


class StoredWeights:
    """A switch for one training run: whether weights act as NVFP4 will store them."""

    def __init__(self) -> None:
        self.on = False

    def __call__(self, weight: Tensor) -> Tensor:
        """The weight as it will be stored, if the switch is on."""
        if not self.on:
            return weight
        with torch.no_grad():
            stored = dequantize_torch(*quantize_torch(weight.detach()))
        return weight + (stored - weight).detach()


def _prepare(model: nn.Module) -> nn.Module:
    """Initial values, dense experts, and `model.stored_weights`, the NVFP4 switch."""
    stored, is_refiner = StoredWeights(), isinstance(model, Gemma4ForCausalLM)
    model.stored_weights = stored  # type: ignore[assignment]
    for name, parameter in model.named_parameters():
        _initialise(name, parameter)
    for name, module in model.named_modules():
        if type(module).__name__.endswith("TextExperts"):
            module.forward = MethodType(_dense_experts(stored), module)
        elif is_refiner and ".mlp." in name and isinstance(module, nn.Linear):
            module.forward = MethodType(_stored_linear(stored), module)  # type: ignore[method-assign]
    return model


def _initialise(name: str, parameter: nn.Parameter) -> None:
    if "vision" in name:
        parameter.requires_grad_(False)
    elif name.endswith("q_norm.weight"):
        # Gemma 4 scales attention by 1: unit query norms would start with logits of std sqrt(D).
        nn.init.constant_(parameter, parameter.numel() ** -0.5)
    elif name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
        nn.init.constant_(parameter, 0.5)


def _dense_experts(stored: StoredWeights) -> Any:
    def forward(self: Any, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        experts, both, hidden = self.gate_up_proj.shape
        halves = stored(self.gate_up_proj.view(experts * 2, both // 2, hidden))
        down = stored(self.down_proj)
        wide = linear(x, halves.reshape(experts * both, hidden)).view(-1, experts, 2, both // 2)
        inner = self.act_fn(wide[:, :, 0]) * wide[:, :, 1]
        every = torch.zeros(len(x), experts, dtype=weights.dtype).scatter(1, chosen, weights)
        inner = (inner * every[..., None]).reshape(len(x), -1)
        return linear(inner, down.permute(1, 0, 2).reshape(hidden, -1))

    return forward


def _stored_linear(stored: StoredWeights) -> Any:
    def forward(self: Any, x: Tensor) -> Tensor:
        return linear(x, stored(self.weight))

    return forward
