"""A step of transformers' own generate, for comparison."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from gpu_timing import synchronize
from hybrid.gemma.config import GemmaConfig


def measure_transformers(config: GemmaConfig, context: int, device: torch.device) -> dict[str, Any]:
    """A step of transformers' own generate at the same geometry: bfloat16, random weights."""
    try:
        with bfloat16_by_default():
            model = random_twin(config, device)
        prompt = torch.randint(3, config.vocab_size, (1, context), device=device)

        def generate(steps: int) -> float:
            synchronize(device)
            started = time.perf_counter()
            model.generate(
                prompt,
                max_new_tokens=config.canvas_length,
                max_denoising_steps=steps,
                confidence_threshold=1e-12,
            )
            synchronize(device)
            return time.perf_counter() - started

        generate(2)
        few, many = generate(2), generate(10)
    except Exception as error:  # reported beside our own numbers, which stand without it
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    step_ms = 1e3 * (many - few) / 8
    return {
        "step_ms": round(step_ms, 2),
        "tokens_per_s_16": round(1e3 * config.canvas_length / (17 * step_ms)),
    }


def random_twin(config: GemmaConfig, device: torch.device) -> Any:
    """transformers' model on the device, with weights of a sane size."""
    from transformers import (
        DiffusionGemmaConfig,
        DiffusionGemmaForBlockDiffusion,
        DiffusionGemmaTextConfig,
        Gemma4VisionConfig,
    )

    sliding, full = (
        next(layer for layer in config.layers if layer.kind == kind) for kind in ("sliding", "full")
    )
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.25,
            "rope_theta": 1_000_000.0,
        },
    }
    text = DiffusionGemmaTextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=len(config.layers),
        layer_types=[f"{layer.kind}_attention" for layer in config.layers],
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=sliding.num_key_value_heads,
        head_dim=sliding.head_dim,
        global_head_dim=full.head_dim,
        num_global_key_value_heads=full.num_key_value_heads,
        sliding_window=config.sliding_window,
        max_position_embeddings=config.max_position_embeddings,
        final_logit_softcapping=config.final_logit_softcapping,
        rope_parameters=rope,
        num_experts=config.num_experts,
        top_k_experts=config.top_k_experts,
        moe_intermediate_size=config.moe_intermediate_size,
    )
    vision = Gemma4VisionConfig(num_hidden_layers=1)
    whole = DiffusionGemmaConfig(
        text_config=text, vision_config=vision, canvas_length=config.canvas_length
    )
    with device, parameters_without_memory():
        model = DiffusionGemmaForBlockDiffusion(whole).eval()
    fill(model, device)
    return model


@contextmanager
def parameters_without_memory() -> Iterator[None]:
    """New modules' parameters have only shapes.

    The model is made of an encoder and a decoder, 50 GB each, which share their weights only when
    both have been made.
    """
    register = torch.nn.Module.register_parameter

    def register_shape(module: Any, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    with patch.object(torch.nn.Module, "register_parameter", register_shape):
        yield


def fill(model: torch.nn.Module, device: torch.device) -> None:
    """Give parameters memory, the same to those that are shared: matrices are random, norms one."""
    made: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, shape in module.named_parameters(recurse=False, remove_duplicate=False):
            if shape not in made:
                values = torch.ones_like(shape, device=device, requires_grad=False)
                if shape.dim() > 1:
                    values.normal_(0, shape.shape[-1] ** -0.5)
                made[shape] = torch.nn.Parameter(values, requires_grad=False)
            module._parameters[name] = made[shape]


@contextmanager
def bfloat16_by_default() -> Iterator[None]:
    """New tensors are bfloat16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
