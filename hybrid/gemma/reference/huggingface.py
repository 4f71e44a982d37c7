"""A model folder as transformers' own model: the second implementation, for comparison.

transformers reads neither published spelling of NVFP4 on a CPU, so quantized matrices are decoded
here, by the same reader as the native stack's; everything after that is transformers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybrid.errors import CapabilityError, CheckpointError
from hybrid.gemma.checkpoint.foreign import refuse_foreign
from hybrid.gemma.checkpoint.nvfp4 import MatrixReader, read_convention
from hybrid.gemma.checkpoint.tensors import FLOATS, Checkpoint
from hybrid.gemma.fields import Fields
from hybrid.gemma.model.overflow import is_finite, overflow_error
from hybrid.gemma.reference.trust import refuse_foreign_code
from hybrid.types import Activations

CLASSES = ("DiffusionGemmaForBlockDiffusion", "Gemma4ForCausalLM")
_ENCODER, _DECODER = "model.encoder.language_model.", "model.decoder."


def load_hf_reference(path: str | Path, device: str = "cpu") -> Any:
    """The transformers model of a folder, in evaluation mode; raises CheckpointError.

    `device` as `placement` understands it.
    """
    import transformers

    device, dtype = placement(device)

    folder = Path(path)
    refuse_foreign(folder)
    refuse_foreign_code(folder)
    name = next(iter(Fields.read(folder / "config.json").values.get("architectures") or [""]))
    if name not in CLASSES:
        raise CheckpointError(str(folder), f"architecture {name!r}: expected one of {CLASSES}")
    kind = getattr(transformers, name)
    config = kind.config_class.from_pretrained(folder)
    config._experts_implementation = "eager"
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model: nn.Module = kind(config).to(device=device, dtype=dtype).eval()
    checkpoint = Checkpoint(folder)
    try:
        checkpoint.compare_tied()
        reader = _Reader(checkpoint)
        with torch.no_grad():
            for tensor_name, tensor in model.state_dict().items():
                if "vision" not in tensor_name:
                    tensor.copy_(reader.read(tensor_name, tensor))
    finally:
        checkpoint.close()
    return model


def placement(device: str) -> tuple[str, torch.dtype]:
    """Where transformers computes, and in what: float32 on "cpu", bfloat16 on a GPU by its name.

    "auto" is a GPU if there is one.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return device, torch.float32 if device == "cpu" else torch.bfloat16


def require_float(activations: Activations) -> None:
    """CapabilityError for activations in four bits, of which transformers knows nothing."""
    if activations != "float":
        missing = "it multiplies by activations as they are: activations must be float"
        raise CapabilityError(f"activations: {activations}", "transformers", missing)


def require_finite(hidden: Tensor, stack: nn.Module, run: Callable[[], Any], causal: bool) -> None:
    """Raise BackendError, with the layer, for hidden states that are no numbers.

    `run` repeats the pass through `stack.layers`.
    """
    if is_finite(hidden):
        return
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    hooks = [
        layer.register_forward_hook(keep) for layer in stack.get_submodule("layers").children()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    raise overflow_error(causal, [outputs[0].new_zeros(1), *outputs])


class _Reader:
    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._matrices = MatrixReader(checkpoint, read_convention(checkpoint.directory))

    def read(self, name: str, like: Tensor) -> Tensor:
        """The tensor `name` of a state dict, from however the folder stores it."""
        module = name.removesuffix(".weight")
        if self._matrices.is_quantized(module):
            return self._matrices.read(module, like.shape)
        if name in self._checkpoint:
            return self._checkpoint.read(name, like.shape, FLOATS)
        if name == "lm_head.weight":  # which the checkpoint calls by the embedding's name
            tied = "decoder." if f"{_DECODER}embed_tokens.weight" in self._checkpoint else ""
            return self.read(f"model.{tied}embed_tokens.weight", like)
        if name.startswith(_ENCODER):
            return self.read(name.replace(_ENCODER, _DECODER, 1), like)
        if name.endswith(".experts.gate_up_proj"):
            return self._experts(module.removesuffix("gate_up_proj"), ("gate", "up"), like)
        if name.endswith(".experts.down_proj"):
            return self._experts(module.removesuffix("down_proj"), ("down",), like)
        raise self._checkpoint.error(name, "missing tensor")

    def _experts(self, prefix: str, parts: tuple[str, ...], like: Tensor) -> Tensor:
        experts, rows, columns = like.shape
        shape = rows // len(parts), columns
        return torch.stack(
            [
                torch.cat([self._matrices.read(f"{prefix}{e}.{p}_proj", shape) for p in parts])
                for e in range(experts)
            ]
        )
