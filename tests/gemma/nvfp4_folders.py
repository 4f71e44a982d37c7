"""Small model folders in the two published spellings of NVFP4."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hybrid.kernels.nvfp4 import dequantize_torch, quantize_torch

Tensors = dict[str, Tensor]
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
QUANTIZED_LINEARS = ("gate_proj.weight", "up_proj.weight", "down_proj.weight", "o_proj.weight")


def tensors_of(folder: Path) -> Tensors:
    return load_file(folder / SINGLE)


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def split_experts(tensors: Tensors) -> Tensors:
    """The experts one by one, as quantized checkpoints name them."""
    split: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith("experts.gate_up_proj"):
            for index, (gate, up) in enumerate(expert.chunk(2) for expert in tensor):
                base = name.removesuffix("gate_up_proj") + str(index)
                split[f"{base}.gate_proj.weight"] = gate.contiguous()
                split[f"{base}.up_proj.weight"] = up.contiguous()
        elif name.endswith("experts.down_proj"):
            for index, down in enumerate(tensor):
                base = name.removesuffix("down_proj") + str(index)
                split[f"{base}.down_proj.weight"] = down.contiguous()
        else:
            split[name] = tensor
    return split


def is_quantized(name: str) -> bool:
    return name.endswith(QUANTIZED_LINEARS) and not ("vision" in name or "self_cond" in name)


def write_nvfp4(folder: Path, convention: str) -> Tensors:
    """Quantize the folder in place; returns what the weights then stand for, by plain names."""
    stored: Tensors = {}
    meant: Tensors = {}
    for name, tensor in split_experts(tensors_of(folder)).items():
        if not is_quantized(name):
            stored[name] = meant[name] = tensor
            continue
        packed, scale, scale_2 = quantize_torch(tensor)
        base = name.removesuffix(".weight")
        stored[f"{base}.weight_scale"] = scale
        if convention == "modelopt":
            stored[name] = packed
            stored[f"{base}.weight_scale_2"] = scale_2
            stored[f"{base}.input_scale"] = torch.tensor(0.5)
            meant[name] = dequantize_torch(packed, scale, scale_2)
        else:
            divisor = 1 / scale_2.reshape(1)
            stored[f"{base}.weight_packed"] = packed
            stored[f"{base}.weight_global_scale"] = divisor
            stored[f"{base}.input_global_scale"] = torch.tensor([2.0])
            meant[name] = dequantize_torch(packed, scale, 1 / divisor[0])
    save_file(stored, folder / SINGLE)
    quantization = {"quant_method": convention, "ignore": ["*self_conditioning*"]}
    if convention == "modelopt":
        quantization["quant_algo"] = "NVFP4"
    else:
        quantization["format"] = "nvfp4-pack-quantized"
    edit_json(folder / "config.json", quantization_config=quantization)
    return meant


def write_shards(folder: Path, count: int) -> None:
    """Deal the folder's tensors to `count` files, so that what belongs together is apart."""
    tensors = tensors_of(folder)
    names = sorted(tensors)
    weight_map = {}
    for shard in range(count):
        file = f"model-{shard + 1:05}-of-{count:05}.safetensors"
        save_file({name: tensors[name] for name in names[shard::count]}, folder / file)
        weight_map.update(dict.fromkeys(names[shard::count], file))
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
