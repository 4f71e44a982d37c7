"""What both stacks read alike: by the names inside a stack, and a checkpoint to its last tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hybrid.gemma.checkpoint.nvfp4 import ACTIVATION_SCALES, MatrixReader, read_convention
from hybrid.gemma.checkpoint.tensors import Checkpoint
from hybrid.gemma.config import GemmaConfig

# Of other kinds of input; hybrid is about text.
TOWERS = tuple(
    f"model.{side}{tower}."
    for tower in ("vision_tower", "embed_vision", "audio_tower", "embed_audio")
    for side in ("", "encoder.")
)


class StackReader:
    """A checkpoint, and where what is read of it goes; CheckpointError as `Checkpoint` raises."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: GemmaConfig,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.checkpoint, self.config = checkpoint, config
        self.device, self.dtype = device, dtype
        self.matrices = MatrixReader(checkpoint, read_convention(checkpoint.directory))

    def named(self, name: str) -> str:
        """The full name of a tensor of the stack."""
        return self.config.tensor_prefix + name

    def stored(self, name: str, shape: Sequence[int]) -> Tensor:
        """A tensor of the stack as it is stored, on the host."""
        return self.checkpoint.numbers(self.named(name), shape)

    def scalars(self, index: int) -> tuple[float, float]:
        """What multiplies a layer's output in causal and in denoising passes."""
        name = f"layers.{index}.layer_scalar"
        denoise = encode = self.stored(name, (1,)).float().item()
        if self.config.architecture == "diffusion_gemma":
            name = f"model.encoder.language_model.{name}"
            encode = self.checkpoint.numbers(name, (1,)).float().item()
        return encode, denoise

    def projections(self, index: int) -> list[tuple[str, int]]:
        """Names and heads of a layer's query, key and, where it has its own, value projection."""
        layer, prefix = self.config.layers[index], f"layers.{index}.self_attn."
        keys = ["k_proj"] if layer.key_is_value else ["k_proj", "v_proj"]
        heads = [(prefix + name, layer.num_key_value_heads) for name in keys]
        return [(f"{prefix}q_proj", self.config.num_attention_heads), *heads]

    def skipped(self) -> tuple[str, ...]:
        """Names of all that was rightly not read; CheckpointError if there is anything else."""
        skipped = self.checkpoint.skip(TOWERS, ACTIVATION_SCALES)
        self.checkpoint.refuse_unread()
        self.checkpoint.compare_tied()
        return skipped
