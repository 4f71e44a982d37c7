"""`hybrid inspect`: what a model folder holds, from its headers alone.

Nothing is loaded: a folder of 50 GB takes as long as one of 2 MB.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from hybrid.cli.run import Flag
from hybrid.cli.terminal import Terminal

MEMORY_GB = (8, 12, 16, 24, 32, 48, 80, 96, 141, 192)  # what graphics cards come with
# The first part whose word is in a tensor's name has it.
PARTS = {
    "vision": ("vision", "audio"),
    "self-conditioning": ("self_conditioning",),
    "experts": (".experts.",),
    "router": (".router.",),
    "attention": (".self_attn.",),
    "dense feed-forward": (".mlp.",),
    "embeddings": ("embed_tokens", "lm_head"),
    "norms and scalars": ("norm", "layer_scalar"),
}
_SCALES = ("_scale", "_scale_2", "_global_scale")
_BITS = {"F32": 32, "BF16": 16, "F16": 16, "F8_E4M3": 8, "U8": 8, "I8": 8, "F64": 64, "I64": 64}


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of tensors: how many parameters, and bytes with everything that decodes them."""

    name: str
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """A model folder; `cache_bytes` is what keys and values of one full context take in float32.

    `gpu_bytes` is what the engine takes for one request of 4096 tokens, `gpu_plan` its parts.
    `template` is the chat template's SHA-256 and `template_revision` the commit of the hub that its
    folder is of; both are empty where there is none.
    """

    folder: str
    architecture: str
    role: str
    layers: str
    hidden_size: int
    experts: str
    vocabulary: int
    context: int
    canvas_length: int
    quantization: str
    parts: tuple[Part, ...]
    cache_bytes: int
    gpu_bytes: int
    gpu_plan: str
    template: str = ""
    template_revision: str = ""

    @property
    def parameters(self) -> int:
        """Parameters of all parts."""
        return sum(part.parameters for part in self.parts)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors in the files."""
        return sum(part.bytes for part in self.parts)

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the text model's parameters in float32, as they are computed with today."""
        return 4 * sum(part.parameters for part in self.parts if part.name != "vision")


def inspect(folder: str, /, *, as_json: Annotated[Flag, Parameter(name="--json")] = False) -> None:
    """Say what a model folder holds, and how much memory it takes; loads nothing.

    Parameters
    ----------
    folder
        A folder in Hugging Face form.
    as_json
        Print one JSON object.
    """
    found = inspect_folder(Path(folder))
    if as_json:
        totals = {
            name: getattr(found, name) for name in ("parameters", "stored_bytes", "decoded_bytes")
        }
        print(json.dumps({**asdict(found), **totals}))
        return
    console = Terminal()
    console.print(facts(found))
    console.print()
    console.print(parts_table(found))


def inspect_folder(folder: Path) -> Inspection:
    """Read configuration and headers; CheckpointError for a folder that they show not to load."""
    from hybrid.conversation.template import ChatTemplate
    from hybrid.engine.memory import plan_memory
    from hybrid.gemma.checkpoint.mapping import map_tensors
    from hybrid.gemma.checkpoint.nvfp4 import read_convention
    from hybrid.gemma.checkpoint.tensors import Checkpoint
    from hybrid.gemma.config import GemmaConfig

    config = GemmaConfig.from_directory(folder)
    has_tokenizer = (folder / "tokenizer_config.json").exists()
    template = ChatTemplate.from_directory(folder.resolve()) if has_tokenizer else None
    kinds = [layer.kind for layer in config.layers]
    full, sliding = kinds.count("full"), kinds.count("sliding")
    seen = {
        "sliding": min(
            config.sliding_window + config.canvas_length, config.max_position_embeddings
        ),
        "full": config.max_position_embeddings,
    }
    cached = sum(
        2 * 4 * layer.num_key_value_heads * layer.head_dim * seen[layer.kind]
        for layer in config.layers
    )
    convention = read_convention(folder)
    map_tensors(folder, config)
    checkpoint = Checkpoint(folder)
    tensors = {name: checkpoint.describe(name) for name in checkpoint.names}
    plan = plan_memory(checkpoint, config)
    checkpoint.close()
    return Inspection(
        folder=str(folder),
        architecture=config.architecture,
        role="drafter" if config.canvas_length else "refiner",
        layers=f"{len(kinds)}: {full} full, {sliding} sliding over {config.sliding_window} tokens",
        hidden_size=config.hidden_size,
        experts=f"{config.num_experts}, {config.top_k_experts} active"
        if config.num_experts
        else "none",
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        canvas_length=config.canvas_length,
        quantization="none" if convention == "plain" else f"NVFP4 as {convention} spells it",
        parts=tuple(_parts(tensors)),
        cache_bytes=cached,
        gpu_bytes=plan.total,
        gpu_plan=str(plan),
        template=template.sha256 if template else "",
        template_revision=template.revision if template else "",
    )


def _parts(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> Iterator[Part]:
    parameters, sizes = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    parameters["other"] = sizes["other"] = 0
    for name, (dtype, shape) in tensors.items():
        words = ((part, word) for part, words in PARTS.items() for word in words)
        part = next((part for part, word in words if word in name), "other")
        elements = prod(shape)
        sizes[part] += elements * _BITS.get(dtype, 32) // 8
        if not name.endswith(_SCALES):
            parameters[part] += 2 * elements if dtype == "U8" else elements
    for part, size in sizes.items():
        if size:
            yield Part(part, parameters[part], size)


def facts(found: Inspection) -> Table:
    """What the folder is, a line each."""
    stored = found.stored_bytes + found.cache_bytes
    decoded = found.decoded_bytes + found.cache_bytes
    rows: dict[str, Any] = {
        "model": f"{found.architecture}, a {found.role}",
        "layers": found.layers,
        "experts": found.experts,
        "size": f"{found.parameters / 1e6:,.1f} M parameters, hidden {found.hidden_size}, "
        f"vocabulary {found.vocabulary:,}",
        "context": f"{found.context:,} tokens"
        + (f", canvas {found.canvas_length}" if found.canvas_length else ""),
        "quantization": found.quantization,
        "chat template": _template(found),
        "as stored": f"{_size(found.stored_bytes)}; with a full cache {_size(stored)}, "
        f"{_fits(stored)}",
        "on a GPU": f"{found.gpu_plan}, {_fits(found.gpu_bytes)}",
        "on a CPU": f"{_size(found.decoded_bytes)} in float32; with a full cache "
        f"{_size(decoded)}, {_fits(decoded)}",
    }
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _template(found: Inspection) -> str:
    """The chat template's identity: a pair must write conversations alike."""
    if not found.template:
        return "none"
    revision = f", of commit {found.template_revision}" if found.template_revision else ""
    return f"sha256 {found.template[:16]}{revision}"


def parts_table(found: Inspection) -> Table:
    """Where parameters and bytes are."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("part")
    for name in ("parameters", "stored"):
        table.add_column(name, justify="right")
    for part in found.parts:
        table.add_row(part.name, f"{part.parameters:,}", _size(part.bytes))
    table.add_row("all", f"{found.parameters:,}", _size(found.stored_bytes), style="bold")
    return table


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _fits(count: int) -> str:
    enough = next((size for size in MEMORY_GB if count <= 0.92 * size * 2**30), None)
    return "more than any one card has" if enough is None else f"fits in {enough} GB"
