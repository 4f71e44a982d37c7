"""Settings of a model folder with which transformers would run code that is not its own.

A folder is data. transformers loads attention and expert kernels from the Hugging Face hub by
names in config.json, and adapters and classes by other keys. All of these are refused before it
reads the folder.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hybrid.errors import CheckpointError
from hybrid.gemma.fields import Fields

_FILES = ("config.json", "generation_config.json")
_OWN = (None, "eager", "sdpa")  # implementations in transformers and torch themselves
_OWN_EXPERTS = (*_OWN, "grouped_mm", "batched_mm")
_LOADS_CODE = (
    *("auto_map", "custom_pipelines", "custom_generate", "use_kernels", "kernel_config"),
    *("trust_remote_code", "transformers_weights"),
)
_QUANT_METHODS = ("modelopt", "compressed-tensors", "bitsandbytes")


def refuse_foreign_code(folder: Path) -> None:
    """Raise CheckpointError, naming file and key, for a setting that loads code or other files."""
    for name in _FILES:
        if (folder / name).exists():
            fields = Fields.read(folder / name)
            for path, key, value in _walk(fields.values, ""):
                _check(fields, path, key, value)
    adapter = folder / "adapter_config.json"
    if adapter.exists():
        message = "an adapter is loaded from wherever it says; merge it into the model's weights"
        raise CheckpointError(str(adapter), message)


def _check(fields: Fields, path: str, key: str, value: Any) -> None:
    if key in _LOADS_CODE and value not in (None, False):
        raise fields.error(path, "loads code from outside transformers; remove it")
    stem = key.removesuffix("_internal")
    if stem.endswith("_implementation"):
        allowed = _OWN_EXPERTS if "experts" in stem else _OWN
        chosen = [*value.values()] if isinstance(value, Mapping) else [value]
        if any(one not in allowed for one in chosen):
            names = " or ".join(str(name) for name in allowed if name)
            message = f"{value!r} may load a kernel from the hub; remove it, or say {names}"
            raise fields.error(path, message)
    if key == "quant_method" and value not in _QUANT_METHODS:
        known = f"allowed are {', '.join(_QUANT_METHODS)}"
        raise fields.error(path, f"{value!r} may load kernels from the hub; {known}")


def _walk(value: Any, prefix: str) -> Iterator[tuple[str, str, Any]]:
    """Every key of an object and of those in it: dotted path, key and value."""
    waiting = [(prefix, value)]
    while waiting:
        before, held = waiting.pop()
        if isinstance(held, Mapping):
            for key, inner in held.items():
                yield f"{before}{key}", str(key), inner
                waiting.append((f"{before}{key}.", inner))
        elif isinstance(held, list):
            waiting += [(before, inner) for inner in held]
