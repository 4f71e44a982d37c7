"""Write a trained model as it ships: `python -m training.export drafter`.

The format is ModelOpt's NVFP4, as NVIDIA publishes DiffusionGemma and Gemma 4: four tensors for
each quantized matrix, everything else bfloat16. The drafter's experts are quantized, and the
refiner's feed-forward matrices. Activation scales come from a pass over training examples.
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cyclopts
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hybrid.embedded import PairRole, weights_path
from hybrid.kernels.nvfp4 import BLOCK, E2M1_MAX, E4M3_MAX, quantize_torch
from training.examples import ExampleSource
from training.networks import CANVAS_LENGTH, build_drafter, build_refiner
from training.objectives import encoder_loss, refiner_loss
from training.tokenizer import EOS, PAD, TOKENIZER_FILES
from training.tokenizer import load as load_tokenizer

_CALIBRATION_EXAMPLES = 256
_UNQUANTIZED = {
    "drafter": ["lm_head", "*mlp*", "*router*", "*self_attn*", "*self_conditioning*"],
    "refiner": ["lm_head", "*self_attn*"],
}

app = cyclopts.App(name="export", help=__doc__)


@app.default
def export(role: PairRole, *, run: Path | None = None, out: Path | None = None) -> None:
    """Quantize the checkpoint in RUN (runs/ROLE) and write the model folder OUT (the package's)."""
    run, out = run or Path("runs") / role, out or weights_path(role)
    tokenizer = load_tokenizer()
    model: Any = (build_drafter if role == "drafter" else build_refiner)(len(tokenizer))
    state = torch.load(run / "state.pt", weights_only=True)["model"]
    model.load_state_dict(state, strict=False)
    source = ExampleSource(tokenizer, role, f"train/{role}/calibration")
    ranges = activation_ranges(model.eval(), source, role)
    out.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if not (out / name).exists():
            shutil.copyfile(weights_path("drafter") / name, out / name)
    tensors = dict(stored_tensors(model.state_dict(), ranges, role))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    write_configs(model, role, out)


def activation_ranges(model: Any, source: ExampleSource, role: PairRole) -> Mapping[str, float]:
    """The largest magnitude that each quantized matrix's input takes, by module name."""
    ranges: dict[str, float] = defaultdict(float)

    def observe(name: str, x: Tensor) -> None:
        ranges[name] = max(ranges[name], x.abs().max().item())

    def watch_experts(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            wide = torch.einsum("th,eoh->teo", x, module.gate_up_proj)
            gate, up = wide.chunk(2, -1)
            observe(f"{name}.gate_proj", x)
            observe(f"{name}.up_proj", x)
            observe(f"{name}.down_proj", module.act_fn(gate) * up)

        return hook

    hooks = []
    for name, module in model.named_modules():
        if type(module).__name__.endswith("TextExperts"):
            hooks.append(module.register_forward_pre_hook(watch_experts(_shared_name(name))))
        elif role == "refiner" and ".mlp." in name and isinstance(module, nn.Linear):
            hooks.append(
                module.register_forward_pre_hook(lambda _, x, name=name: observe(name, x[0]))
            )
    loss = encoder_loss if role == "drafter" else refiner_loss
    with torch.no_grad():
        loss(model, source.batch(_CALIBRATION_EXAMPLES))
    for hook in hooks:
        hook.remove()
    return ranges


def stored_tensors(
    state: Mapping[str, Tensor], ranges: Mapping[str, float], role: PairRole
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the shipped file by name; tied and unused ones are left out."""
    for name, tensor in state.items():
        if "vision" in name or name == "lm_head.weight":
            continue
        if name.startswith("model.encoder") and not name.endswith("layer_scalar"):
            continue  # tied to the decoder's
        module = name.removesuffix(".weight")
        if name.endswith("experts.gate_up_proj"):
            experts = name.removesuffix(".gate_up_proj")
            for index, both in enumerate(tensor):
                for part, matrix in zip(("gate_proj", "up_proj"), both.chunk(2), strict=True):
                    amax = ranges[f"{experts}.{part}"]
                    yield from _quantized(f"{experts}.{index}.{part}", matrix, amax)
        elif name.endswith("experts.down_proj"):
            experts = name.removesuffix(".down_proj")
            for index, matrix in enumerate(tensor):
                yield from _quantized(f"{experts}.{index}.down_proj", matrix, ranges[name])
        elif role == "refiner" and ".mlp." in name:
            yield from _quantized(module, tensor, ranges[module])
        else:
            yield name, tensor.to(torch.bfloat16).contiguous()


def _quantized(name: str, matrix: Tensor, amax: float) -> Iterator[tuple[str, Tensor]]:
    packed, scale, scale_2 = quantize_torch(matrix)
    yield f"{name}.weight", packed.contiguous()
    yield f"{name}.weight_scale", scale.contiguous()
    yield f"{name}.weight_scale_2", scale_2
    yield f"{name}.input_scale", torch.tensor(amax / (E2M1_MAX * E4M3_MAX))


def write_configs(model: Any, role: PairRole, out: Path) -> None:
    """config.json with its quantization, hf_quant_config.json and generation_config.json."""
    quantization = {"quant_algo": "NVFP4", "group_size": BLOCK, "kv_cache_quant_algo": None}
    scheme = {"num_bits": 4, "type": "float", "group_size": BLOCK, "dynamic": False}
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    config["dtype"] = "bfloat16"
    config["quantization_config"] = {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "config_groups": {
            "group_0": {"input_activations": scheme, "weights": scheme, "targets": ["Linear"]}
        },
        "ignore": _UNQUANTIZED[role],
    }
    quantization["exclude_modules"] = _UNQUANTIZED[role]
    generation: dict[str, Any] = {"eos_token_id": EOS, "pad_token_id": PAD}
    if role == "drafter":
        generation |= {
            "max_new_tokens": CANVAS_LENGTH,
            "max_denoising_steps": 48,
            "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
            "t_max": 0.8,
            "t_min": 0.4,
            "stability_threshold": 1,
            "confidence_threshold": 0.005,
        }
    files = {
        "config.json": config,
        "hf_quant_config.json": {"quantization": quantization},
        "generation_config.json": generation,
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2, sort_keys=True, default=str) + "\n")


def _shared_name(name: str) -> str:
    """The decoder's name of a module that encoder and decoder share."""
    return name.replace("model.encoder.language_model.", "model.decoder.")


if __name__ == "__main__":
    app()
