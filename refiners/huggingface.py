"""An autoregressive Gemma 4 of any size, run by transformers, under the native refiner's session.

transformers' own cache for sliding layers cannot be cut back once its window has moved on. Here
every layer keeps all it has read, and the model's attention masks, which do not depend on the
cache's kind, still hide what lies outside the window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from hybrid.conversation.tokenizer import ChatTokenizer
from hybrid.errors import CheckpointError
from hybrid.gemma.checkpoint.foreign import refuse_foreign
from hybrid.gemma.config import read_end_token_ids
from hybrid.gemma.fields import Fields
from hybrid.gemma.reference.huggingface import (
    CLASSES,
    load_hf_reference,
    placement,
    require_finite,
    require_float,
)
from hybrid.gemma.reference.trust import refuse_foreign_code
from hybrid.refiners.gemma import GemmaRefiner
from hybrid.types import Activations

_FAMILY = "Gemma4"


class HuggingFaceRefiner(GemmaRefiner):
    """`GemmaRefiner` on transformers' forward passes."""

    @classmethod
    def from_directory(
        cls, path: str | Path, device: str = "auto", activations: Activations = "float"
    ) -> Self:
        """The refiner in a model folder; raises CheckpointError, CapabilityError for `nvfp4`."""
        require_float(activations)
        model = TransformersCausal(_load(Path(path), device), read_end_token_ids(path))
        return cls(model, ChatTokenizer.from_directory(path))


@dataclass(frozen=True, slots=True)
class CausalConfig:
    """The part of a configuration that a session reads."""

    hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    end_token_ids: frozenset[int]


class FullCache:
    """One row's keys and values, all of them, and how many tokens they are."""

    def __init__(self) -> None:
        from transformers import DynamicCache

        self.layers, self.length = DynamicCache(), 0

    def rollback(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Forget all but the first `lengths[0]` tokens."""
        surplus = self.length - lengths[0]
        if surplus > 0:
            self.layers.crop(-surplus)
            self.length = lengths[0]


class TransformersCausal:
    """A transformers Gemma 4 as a session wants it: one row, hidden states out."""

    def __init__(self, model: Any, end_token_ids: frozenset[int]) -> None:
        text = model.config.get_text_config(decoder=True)
        self.config = CausalConfig(
            text.hidden_size, text.vocab_size, text.max_position_embeddings, end_token_ids
        )
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self._decoder = getattr(model.model, "language_model", model.model)
        self._lm_head, self._softcap = model.lm_head, text.final_logit_softcapping

    def new_cache(self, batch_size: int, capacity: int, spare: int | None = None) -> FullCache:
        """An empty cache of one row; it grows as it is filled."""
        return FullCache()

    def encode(
        self, token_ids: Tensor, lengths: Sequence[int], cache: FullCache, rows: Sequence[int]
    ) -> Tensor:
        """See `GemmaModel.encode`."""
        run = partial(
            self._decoder, input_ids=token_ids, past_key_values=cache.layers, use_cache=True
        )
        hidden: Tensor = run().last_hidden_state
        require_finite(hidden, self._decoder, run, causal=True)
        cache.length += token_ids.shape[1]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """See `GemmaModel.logits`."""
        logits: Tensor = self._lm_head(hidden).float()
        return torch.tanh(logits / self._softcap) * self._softcap if self._softcap else logits


def _load(folder: Path, device: str) -> Any:
    """The transformers model of a folder, in evaluation mode."""
    import transformers

    refuse_foreign(folder)
    refuse_foreign_code(folder)
    name = next(iter(Fields.read(folder / "config.json").values.get("architectures") or [""]))
    if name in CLASSES and "Diffusion" not in name:
        return load_hf_reference(folder, device)  # which also reads quantized weights
    if not name.startswith(_FAMILY) or not hasattr(transformers, name):
        expected = "a Gemma 4 that transformers knows, such as Gemma4ForConditionalGeneration"
        raise CheckpointError(str(folder), f"architecture {name!r}: expected {expected}")
    device, dtype = placement(device)
    model = getattr(transformers, name).from_pretrained(folder, dtype=dtype, use_safetensors=True)
    return model.to(device).eval()
