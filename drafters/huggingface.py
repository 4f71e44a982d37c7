"""DiffusionGemma run by transformers, under the same loop as the native stack.

The second implementation of a drafter: same seeds, same answers. Only the forward passes differ, so
that a disagreement between the two is a mistake in one of the model stacks.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from hybrid.conversation.tokenizer import ChatTokenizer
from hybrid.drafters.diffusion_gemma import DiffusionGemmaDrafter, read_params
from hybrid.errors import CheckpointError
from hybrid.gemma.config import GemmaConfig
from hybrid.gemma.reference.huggingface import load_hf_reference, require_finite, require_float
from hybrid.types import Activations


class HuggingFaceDrafter(DiffusionGemmaDrafter):
    """`DiffusionGemmaDrafter` on transformers' forward passes."""

    @classmethod
    def from_directory(
        cls, path: str | Path, device: str = "auto", activations: Activations = "float"
    ) -> Self:
        """The drafter in a model folder; raises CheckpointError, CapabilityError for `nvfp4`."""
        require_float(activations)
        config = GemmaConfig.from_directory(path)
        if not config.canvas_length:
            raise CheckpointError(str(path), "not a drafter: the model has no canvas")
        model = TransformersModel(load_hf_reference(path, device), config)
        tokenizer = ChatTokenizer.from_directory(path)
        return cls(model, tokenizer, default_params=read_params(Path(path)))


class TransformersModel:
    """A `DiffusionGemmaForBlockDiffusion` as the denoising loop wants it, row by row.

    The loop hands over the soft embedding that transformers would compute from logits, so a hook
    puts it in the self-conditioning's place. A cache is a list of transformers caches, one a row.
    """

    def __init__(self, model: Any, config: GemmaConfig) -> None:
        self.config = config
        self.device: torch.device = model.device
        self._model = model
        self._signal: Tensor | None = None
        model.model.decoder.self_conditioning.register_forward_pre_hook(
            lambda module, inputs: (inputs[0], self._signal)
        )

    def new_cache(self, batch_size: int, capacity: int) -> list[Any]:
        """Empty caches; they grow as they are filled."""
        return [self._new_row() for _ in range(batch_size)]

    def clear_row(self, cache: list[Any], row: int) -> None:
        """See `GemmaModel.clear_row`."""
        cache[row] = self._new_row()

    def _new_row(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self._model.config.get_text_config(decoder=True))

    def encode(
        self, token_ids: Tensor, lengths: Sequence[int], cache: list[Any], rows: Sequence[int]
    ) -> Tensor:
        """See `GemmaModel.encode`."""
        encoder = self._model.model.encoder.language_model
        hidden = token_ids.new_zeros(
            (*token_ids.shape, self.config.hidden_size), dtype=self._model.dtype
        )
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            ids = token_ids[index : index + 1, :length]
            run = partial(encoder, input_ids=ids, past_key_values=cache[row])
            hidden[index, :length] = run().last_hidden_state[0]
            require_finite(hidden[index, :length], encoder, run, causal=True)
        return hidden

    def read(
        self, token_ids: Tensor, lengths: Sequence[int], cache: list[Any], rows: Sequence[int]
    ) -> None:
        """See `GemmaModel.read`."""
        self.encode(token_ids, lengths, cache, rows)

    def denoise(
        self,
        canvas_ids: Tensor,
        soft_embedding: Tensor | None,
        cache: list[Any],
        rows: Sequence[int],
    ) -> Tensor:
        """See `GemmaModel.denoise`."""
        if soft_embedding is None:
            size = *canvas_ids.shape, self.config.hidden_size
            soft_embedding = torch.zeros(size, device=self.device, dtype=self._model.dtype)
        states = []
        for index, row in enumerate(rows):
            self._signal = soft_embedding[index : index + 1]
            decoder = self._model.model.decoder
            canvas = canvas_ids[index : index + 1]
            run = partial(decoder, decoder_input_ids=canvas, past_key_values=cache[row])
            states.append(run().last_hidden_state)
            require_finite(states[-1], decoder, run, causal=False)
        return self.logits(torch.cat(states))

    def logits(self, hidden: Tensor) -> Tensor:
        """See `GemmaModel.logits`."""
        logits: Tensor = self._model.lm_head(hidden).float()
        softcap = self.config.final_logit_softcapping
        return torch.tanh(logits / softcap) * softcap if softcap else logits

    def score(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        """See `GemmaModel.score`."""
        return self.logits(hidden).log_softmax(-1).gather(1, token_ids[:, None])[:, 0]

    def soft_embed(self, probabilities: Tensor) -> Tensor:
        """See `GemmaModel.soft_embed`."""
        embedding = self._model.model.decoder.embed_tokens
        mixed = probabilities.to(embedding.weight.dtype) @ embedding.weight
        scaled: Tensor = mixed * embedding.embed_scale.to(mixed.dtype)
        return scaled
