"""A bfloat16 model folder as NVFP4, shard by shard, in either published spelling.

Only weights become 4-bit. Scales of activations would have to be calibrated on text, so none are
written: the result says that it is weight-only. Gate and up of a network, and query, key and value,
share their last factor, as runtimes that multiply them as one matrix expect.

A shard is finished when its record is there, and a folder when `config.json` is, so a run that was
killed is continued by the same call.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from hybrid.errors import CapabilityError, CheckpointError
from hybrid.gemma.checkpoint import INDEX, SINGLE, Checkpoint
from hybrid.gemma.config import GemmaConfig
from hybrid.gemma.mapping import map_tensors
from hybrid.gemma.quantized import read_convention
from hybrid.gemma.shards import Form, ShardWriter
from hybrid.kernels.nvfp4 import BLOCK
from hybrid.kernels.quantize import dequantize, quantize

Format = Literal["modelopt", "compressed-tensors"]
Parts = Literal["experts", "experts+mlp", "all"]
RECORDS = ".quantize"
_CLASSES = {"experts": r"\.experts\.", "mlp": r"\.mlp\.", "attention": r"\.self_attn\."}
_CHOSEN: dict[Parts, tuple[str, ...]] = {
    "experts": ("experts",),
    "experts+mlp": ("experts", "mlp"),
    "all": ("experts", "mlp", "attention"),
}
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_LINEAR = re.compile(r"(?:gate|up|down|q|k|v|o)_proj\.weight$")
_FUSED = re.compile(r"\.experts\.(?:gate_up|down)_proj$")


@dataclass(frozen=True, slots=True)
class Job:
    """What to make of a source folder."""

    source: Path
    target: Path
    format: Format
    parts: Parts


class Quantizer:
    """One job, checked: CheckpointError or CapabilityError for one that makes no sense."""

    def __init__(self, job: Job) -> None:
        self.job = job
        if job.source.resolve() == job.target.resolve():
            raise CapabilityError(f"quantising {job.source}", "itself", "another target folder")
        config = GemmaConfig.from_directory(job.source)
        if read_convention(job.source) != "plain":
            message = "quantization_config: is quantised already; give the bfloat16 folder"
            raise CheckpointError(str(job.source / "config.json"), message)
        if job.parts == "experts" and not config.num_experts:
            missing = "has no experts; choose --only experts+mlp or all"
            raise CapabilityError("quantising experts", str(job.source), missing)
        self.text = {*map_tensors(job.source, config).read}
        self.checkpoint = Checkpoint(job.source)
        self.shards: dict[str, list[str]] = {}
        for name in self.checkpoint.names:
            self.shards.setdefault(Path(self.checkpoint.file(name)).name, []).append(name)
            shape = self.checkpoint.describe(name)[1]
            if self.part(name) and shape[-1] % BLOCK:
                message = f"NVFP4 needs a multiple of {BLOCK} columns, not {shape[-1]}"
                raise self.checkpoint.error(name, message)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._prepare()

    def _prepare(self) -> None:
        """Make the target, or see that it is the same job's unfinished one."""
        job, records = self.job, self.job.target / RECORDS
        settings = json.dumps([str(job.source.resolve()), job.format, job.parts])
        kept = records / "job.json"
        if kept.exists() and kept.read_text("utf-8") == settings:
            return
        if job.target.exists() and any(job.target.iterdir()):
            missing = "an empty folder, or the unfinished one of the same call"
            raise CapabilityError(f"quantising {job.source}", str(job.target), missing)
        records.mkdir(parents=True)
        _write(kept, settings)

    def part(self, name: str) -> str | None:
        """The class of a tensor that becomes 4-bit, None for all others."""
        if name not in self.text or not (_LINEAR.search(name) or _FUSED.search(name)):
            return None
        chosen = _CHOSEN[self.job.parts]
        return next((part for part in chosen if re.search(_CLASSES[part], name)), None)

    @property
    def unfinished(self) -> list[str]:
        """Shards still to be written."""
        return [shard for shard in self.shards if not self._record(shard).exists()]

    def steps(self, shard: str) -> Iterator[int]:
        """Write one shard; yields the bytes read with each tensor."""
        names = self.shards[shard]
        outputs = {name: self.forms(name) for name in names}
        forms = {key: form for parts in outputs.values() for key, form in parts.items()}
        errors: dict[str, list[float]] = {}
        with ShardWriter(self.job.target / shard, forms) as writer:
            for name in names:
                tensor = self.checkpoint.read(name)
                part = self.part(name)
                if part is None:
                    writer.write(name, tensor)
                else:
                    total = errors.setdefault(part, [0.0, 0.0])
                    for key, value in self.quantized(name, tensor, total):
                        writer.write(key, value)
                yield tensor.numel() * tensor.element_size()
        sizes = sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in forms.values())
        record = {"tensors": [*forms], "bytes": sizes, "errors": errors}
        _write(self._record(shard), json.dumps(record))

    def linears(self, name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, int, int]]:
        """(name, rows, columns) of the linear layers that a stored tensor holds."""
        if not _FUSED.search(name):
            yield name.removesuffix(".weight"), *cast(tuple[int, int], shape)
            return
        count, rows, columns = shape
        prefix, _, what = name.rpartition(".")
        for expert in range(count):
            if what == "down_proj":
                yield f"{prefix}.{expert}.down_proj", rows, columns
            else:
                yield f"{prefix}.{expert}.gate_proj", rows // 2, columns
                yield f"{prefix}.{expert}.up_proj", rows // 2, columns

    def forms(self, name: str) -> dict[str, Form]:
        """Types and shapes of what is written for a stored tensor."""
        shape = self.checkpoint.describe(name)[1]
        if self.part(name) is None:
            return {name: (self.checkpoint.read(name).dtype, shape)}
        forms: dict[str, Form] = {}
        for linear, rows, columns in self.linears(name, shape):
            packed, outer = self.names(linear)
            forms[packed] = torch.uint8, (rows, columns // 2)
            forms[f"{linear}.weight_scale"] = torch.float8_e4m3fn, (rows, columns // BLOCK)
            forms[outer] = torch.float32, () if self.job.format == "modelopt" else (1,)
        return forms

    def names(self, linear: str) -> tuple[str, str]:
        """What the codes and the last factor are called."""
        if self.job.format == "modelopt":
            return f"{linear}.weight", f"{linear}.weight_scale_2"
        return f"{linear}.weight_packed", f"{linear}.weight_global_scale"

    def quantized(
        self, name: str, tensor: Tensor, error: list[float]
    ) -> Iterator[tuple[str, Tensor]]:
        """What is written for a stored tensor; adds squares to `error`: lost, and in all."""
        linears = iter(self.linears(name, tuple(tensor.shape)))
        for matrix in tensor if _FUSED.search(name) else (self.together(name, tensor),):
            weight = matrix.to(self.device).float()
            packed, scales, outer = quantize(weight)
            first = 0
            while first < (len(weight) if _FUSED.search(name) else len(tensor)):
                linear, rows, _ = next(linears)
                part = slice(first, first + rows)
                stored = self.last_factor(outer)
                decoded = dequantize(packed[part], scales[part], outer)
                error[0] += (decoded - weight[part]).double().square().sum().item()
                error[1] += weight[part].double().square().sum().item()
                codes, factor = self.names(linear)
                yield codes, packed[part]
                yield f"{linear}.weight_scale", scales[part]
                yield factor, stored
                first += rows

    def together(self, name: str, tensor: Tensor) -> Tensor:
        """The matrix over those that share its last factor; it comes first."""
        prefix, _, own = name.removesuffix(".weight").rpartition(".")
        group = next((group for group in _TOGETHER if own in group), ())
        others = [f"{prefix}.{other}.weight" for other in group if other != own]
        rest = [self.checkpoint.read(other) for other in others if other in self.checkpoint]
        return torch.cat((tensor, *rest)) if rest else tensor

    def last_factor(self, outer: Tensor) -> Tensor:
        """weight_scale_2, or its reciprocal as a list of one."""
        return outer if self.job.format == "modelopt" else (1 / outer).reshape(1)

    def finish(self) -> dict[str, float]:
        """Write all but the shards; returns the relative error (RMS) of each class of tensors."""
        target, source = self.job.target, self.job.source
        records = {s: json.loads(self._record(s).read_text("utf-8")) for s in self.shards}
        if [*self.shards] != [SINGLE]:
            weight_map = {name: s for s, record in records.items() for name in record["tensors"]}
            total = sum(record["bytes"] for record in records.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            _write(target / INDEX, json.dumps(index, indent=1))
        for file in source.iterdir():
            is_weights = file.suffix in (".safetensors", ".bin", ".gguf") or file.name == INDEX
            if file.is_file() and not is_weights and file.name != "config.json":
                shutil.copyfile(file, target / file.name)
        config = json.loads((source / "config.json").read_text("utf-8"))
        config["quantization_config"] = self.declaration()
        _write(target / "config.json", json.dumps(config, indent=2))
        shutil.rmtree(target / RECORDS)
        lost, whole = Counter[str](), Counter[str]()
        for record in records.values():
            for part, (squares, total_squares) in record["errors"].items():
                lost[part] += squares
                whole[part] += total_squares
        return {part: (lost[part] / whole[part]) ** 0.5 if whole[part] else 0.0 for part in whole}

    def declaration(self) -> dict[str, Any]:
        """`quantization_config` as the format's own tools write it."""
        words = ["embed_vision", "router", "self_conditioning", "vision_tower"]
        chosen = _CHOSEN[self.job.parts]
        words += ["mlp"] if "mlp" not in chosen else []
        words += ["self_attn"] if "attention" not in chosen else []
        weights: dict[str, Any] = {"num_bits": 4, "type": "float", "group_size": BLOCK}
        weights["dynamic"] = False
        group = {"weights": weights, "input_activations": None, "targets": ["Linear"]}
        if self.job.format == "modelopt":
            return {
                "quant_method": "modelopt",
                "quant_algo": "NVFP4",
                "group_size": BLOCK,
                "config_groups": {"group_0": group},
                "ignore": ["lm_head", *(f"*{word}*" for word in sorted(words))],
                "producer": {"name": "hybrid"},
            }
        weights |= {"strategy": "tensor_group", "symmetric": True}
        weights["scale_dtype"] = "torch.float8_e4m3fn"
        return {
            "quant_method": "compressed-tensors",
            "format": "nvfp4-pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group | {"format": "nvfp4-pack-quantized"}},
            "ignore": ["lm_head", *(f"re:.*{word}.*" for word in sorted(words))],
            "kv_cache_scheme": None,
        }

    def _record(self, shard: str) -> Path:
        return self.job.target / RECORDS / f"{shard}.json"


def _write(file: Path, text: str) -> None:
    """The whole text or nothing."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text, "utf-8")
    partial.replace(file)
