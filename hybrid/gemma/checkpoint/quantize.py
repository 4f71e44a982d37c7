"""A bfloat16 model folder as NVFP4, shard by shard, in either published spelling.

Only weights become 4-bit. Scales of activations would have to be calibrated on text, so none are
written: the result says that it is weight-only. Gate and up of a network, and query, key and value,
share their last factor, as runtimes that multiply them as one matrix expect.

A shard is finished when the resume state lists it, and a folder when that file is gone. The same
call continues a run that was killed.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, cast

import torch
from torch import Tensor

from hybrid.errors import CapabilityError, CheckpointError
from hybrid.gemma.checkpoint.mapping import map_tensors
from hybrid.gemma.checkpoint.nvfp4 import read_convention
from hybrid.gemma.checkpoint.quantization_config import Format, quantization_config
from hybrid.gemma.checkpoint.resume_state import ResumeState, copy_whole, write_whole
from hybrid.gemma.checkpoint.shard_writer import Form, ShardWriter
from hybrid.gemma.checkpoint.tensor_file import DTYPES, stored_bytes
from hybrid.gemma.checkpoint.tensors import INDEX, SINGLE, Checkpoint, all_finite
from hybrid.gemma.config import GemmaConfig
from hybrid.kernels.nvfp4 import BLOCK
from hybrid.kernels.quantize import dequantize, quantize

Parts = Literal["experts", "experts+mlp", "all"]
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
    """One job, checked: CheckpointError or CapabilityError for one that makes no sense.

    The target is this run's own from entering it as a context to leaving it. Entering raises
    CapabilityError for a target that is not free, CheckpointError for one whose resume state is
    damaged, and OSError, with the file's name, for one that cannot be written.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        if job.source.resolve() == job.target.resolve():
            raise CapabilityError(f"quantizing {job.source}", "itself", "another target folder")
        config = GemmaConfig.from_directory(job.source)
        if read_convention(job.source) != "plain":
            message = "quantization_config: is quantized already; give the bfloat16 folder"
            raise CheckpointError(str(job.source / "config.json"), message)
        if job.parts == "experts" and not config.num_experts:
            missing = "has no experts; choose --only experts+mlp or all"
            raise CapabilityError("quantizing experts", str(job.source), missing)
        self.text = {*map_tensors(job.source, config).read}
        self.checkpoint = Checkpoint(job.source)
        self.checkpoint.compare_tied()
        self.shards: dict[str, list[str]] = {}
        for name in self.checkpoint.names:
            self.shards.setdefault(Path(self.checkpoint.file(name)).name, []).append(name)
            dtype, shape = self.checkpoint.describe(name)
            if dtype not in DTYPES:
                raise self.checkpoint.error(name, f"{dtype} is not a type that can be copied")
            if self.part(name) and shape[-1] % BLOCK:
                message = f"NVFP4 needs a multiple of {BLOCK} columns, not {shape[-1]}"
                raise self.checkpoint.error(name, message)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        files = {shard: (job.source / shard).stat() for shard in self.shards}
        seen = {shard: [file.st_size, file.st_mtime_ns] for shard, file in files.items()}
        made_of = [str(job.source.resolve()), job.format, job.parts, seen]
        self.state = ResumeState(job.target, made_of)

    def __enter__(self) -> Self:
        try:
            missing = self.state.begin() or self._missing_disk_space()
            if missing:
                raise CapabilityError(
                    f"quantizing {self.job.source}", str(self.job.target), missing
                )
        except BaseException:
            self.state.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.state.close()

    def _missing_disk_space(self) -> str:
        """What is missing to write all that is unfinished; empty if nothing is."""
        needed = sum(self.size(shard) for shard in self.unfinished)
        free = shutil.disk_usage(self.job.target).free
        if needed <= free:
            return ""
        return f"needs {needed / 1e9:.2f} GB of disk, and {free / 1e9:.2f} GB are free"

    def part(self, name: str) -> str | None:
        """The class of a tensor that becomes 4-bit, None for all others."""
        if name not in self.text or not (_LINEAR.search(name) or _FUSED.search(name)):
            return None
        chosen = _CHOSEN[self.job.parts]
        return next((part for part in chosen if re.search(_CLASSES[part], name)), None)

    @property
    def unfinished(self) -> list[str]:
        """Shards still to be written."""
        return [shard for shard in self.shards if shard not in self.state.records]

    def size(self, shard: str) -> int:
        """Bytes of the tensors that a finished shard has."""
        return sum(stored_bytes(*form) for form in self.shard_forms(shard).values())

    def steps(self, shard: str) -> Iterator[int]:
        """Write one shard; yields the bytes read with each tensor."""
        names = self.shards[shard]
        errors: dict[str, list[float]] = {}
        with ShardWriter(self.job.target / shard, self.shard_forms(shard)) as writer:
            for name in names:
                tensor = self.read(name)
                part = self.part(name)
                if part is None:
                    writer.write(name, tensor)
                else:
                    total = errors.setdefault(part, [0.0, 0.0])
                    for key, value in self.quantized(name, tensor, total):
                        writer.write(key, value)
                yield tensor.numel() * tensor.element_size()
        self.state.note(shard, errors)

    def read(self, name: str) -> Tensor:
        """A stored tensor; CheckpointError if the text model's numbers in it are not finite."""
        tensor = self.checkpoint.read(name)
        self.checkpoint.require_finite(name, name not in self.text or all_finite(tensor))
        return tensor

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

    def shard_forms(self, shard: str) -> dict[str, Form]:
        """Types and shapes of all that is written for a stored shard."""
        return {k: form for name in self.shards[shard] for k, form in self.forms(name).items()}

    def forms(self, name: str) -> dict[str, Form]:
        """Types and shapes of what is written for a stored tensor."""
        dtype, shape = self.checkpoint.describe(name)
        if self.part(name) is None:
            return {name: (dtype, shape)}
        forms: dict[str, Form] = {}
        for linear, rows, columns in self.linears(name, shape):
            packed, outer = self.names(linear)
            forms[packed] = "U8", (rows, columns // 2)
            forms[f"{linear}.weight_scale"] = "F8_E4M3", (rows, columns // BLOCK)
            forms[outer] = "F32", () if self.job.format == "modelopt" else (1,)
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
                error[0] += _squares(decoded.sub_(weight[part]))
                error[1] += _squares(weight[part])
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
        rest = [self.read(other) for other in others if other in self.checkpoint]
        return torch.cat((tensor, *rest)) if rest else tensor

    def last_factor(self, outer: Tensor) -> Tensor:
        """weight_scale_2, or its reciprocal as a list of one."""
        return outer if self.job.format == "modelopt" else (1 / outer).reshape(1)

    def finish(self) -> dict[str, float]:
        """Write all but the shards; returns the relative error (RMS) of each class of tensors."""
        target, source = self.job.target, self.job.source
        records = self.state.records
        if [*self.shards] != [SINGLE]:
            weight_map = {name: shard for shard in self.shards for name in self.shard_forms(shard)}
            total = sum(self.size(shard) for shard in self.shards)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            write_whole(target / INDEX, json.dumps(index, indent=1))
        for file in source.iterdir():
            is_weights = file.suffix in (".safetensors", ".bin", ".gguf") or file.name == INDEX
            if file.is_file() and not is_weights and file.name != "config.json":
                copy_whole(file, target / file.name)
        config = json.loads((source / "config.json").read_text("utf-8"))
        chosen = _CHOSEN[self.job.parts]
        config["quantization_config"] = quantization_config(self.job.format, chosen)
        write_whole(target / "config.json", json.dumps(config, indent=2))
        self.state.end()
        lost, whole = Counter[str](), Counter[str]()
        for record in records.values():
            for part, (squares, total_squares) in record.items():
                lost[part] += squares
                whole[part] += total_squares
        return {part: (lost[part] / whole[part]) ** 0.5 if whole[part] else 0.0 for part in whole}


def _squares(numbers: Tensor) -> float:
    """The sum of their squares, in float64."""
    return float(torch.linalg.vector_norm(numbers, dtype=torch.float64)) ** 2
