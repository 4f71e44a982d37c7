"""An autoregressive Gemma 4 on the native stack, with one cache from scoring to continuing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from hybrid.deadline import Deadline
from hybrid.errors import RequestError
from hybrid.gemma.model import GemmaModel, load_model
from hybrid.gemma.threads import Threads
from hybrid.gemma.tokenizer import ChatTokenizer
from hybrid.protocols import Scores
from hybrid.types import FinishReason, Request


class GemmaRefiner:
    """A refiner (see `hybrid.protocols.Refiner`) on a Gemma 4 of any size."""

    def __init__(self, model: GemmaModel, tokenizer: ChatTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def from_directory(cls, path: str | Path, device: str = "cpu") -> Self:
        """The refiner in a model folder; raises CheckpointError."""
        return cls(load_model(path, device=device), ChatTokenizer.from_directory(path))

    @property
    def end_token_ids(self) -> frozenset[int]:
        """See `Refiner.end_token_ids`."""
        return self.model.config.end_token_ids

    def count_prompt_tokens(self, request: Request) -> int:
        """See `Refiner.count_prompt_tokens`."""
        return len(self.tokenizer.encode_conversation(request.conversation))

    def open(self, request: Request, max_answer_tokens: int) -> "GemmaSession":
        """See `Refiner.open`."""
        prompt = self.tokenizer.encode_conversation(request.conversation)
        most = self.model.config.max_position_embeddings
        if len(prompt) >= most:
            allowed = f"the prompt must leave room in the context: at most {most - 1} tokens"
            raise RequestError("prompt", f"{len(prompt)} tokens", allowed)
        return GemmaSession(self.model, prompt, min(max_answer_tokens, most - len(prompt)))

    def decode(self, token_ids: Sequence[int]) -> str:
        """See `Refiner.decode`."""
        return self.tokenizer.decode(token_ids)


class GemmaSession:
    """One prompt and what has been read of its answer (see `hybrid.protocols.RefinerSession`).

    `_states` [n + 1, H] are the hidden states after the prompt and after each answer token read, so
    that rewinding needs no pass.
    """

    def __init__(self, model: GemmaModel, prompt: list[int], max_answer_tokens: int) -> None:
        self._model, self._prompt = model, prompt
        self.max_answer_tokens = max_answer_tokens
        capacity = len(prompt) + max_answer_tokens
        self._cache = model.new_cache(1, capacity, spare=max_answer_tokens)
        self._states = torch.empty(
            0, model.config.hidden_size, device=model.device, dtype=model.dtype
        )
        self._passes = 0
        self._threads = Threads.of(model.config)

    @property
    def forward_passes(self) -> int:
        """See `RefinerSession.forward_passes`."""
        return self._passes

    @torch.inference_mode()
    def score(self, token_ids: Sequence[int]) -> Scores:
        """See `RefinerSession.score`."""
        first = max(0, len(self._states) - 1)
        with self._threads:
            self._read(token_ids)
            logits = self._model.logits(self._states[first:])
            # Not of the log-probabilities: rounding makes ties that greedy decoding never sees.
            choices: list[int] = logits.argmax(-1).tolist()
            log_p = logits.log_softmax(-1)
            logprobs: list[float] = log_p[range(len(token_ids)), list(token_ids)].tolist()
        return Scores(tuple(logprobs), tuple(choices))

    def rewind(self, answer_tokens: int) -> None:
        """See `RefinerSession.rewind`."""
        self._cache.rollback([0], [len(self._prompt) + answer_tokens])
        self._states = self._states[: answer_tokens + 1]

    @torch.inference_mode()
    def continue_greedily(
        self, token_ids: Sequence[int], max_new_tokens: int, deadline: Deadline
    ) -> tuple[tuple[int, ...], FinishReason]:
        """See `RefinerSession.continue_greedily`."""
        with self._threads:
            return self._continue(token_ids, max_new_tokens, deadline)

    def _continue(
        self, token_ids: Sequence[int], max_new_tokens: int, deadline: Deadline
    ) -> tuple[tuple[int, ...], FinishReason]:
        if token_ids or not len(self._states):
            self._read(token_ids)
        written: list[int] = []
        limit = min(max_new_tokens, self.max_answer_tokens - (len(self._states) - 1))
        while len(written) < limit:
            deadline.raise_if_cancelled()
            if deadline.expired:
                return tuple(written), "budget"
            token = int(self._model.logits(self._states[-1]).argmax())
            written.append(token)
            if token in self._model.config.end_token_ids:
                return tuple(written), "stop"
            if len(written) < limit:
                self._read([token])
        return tuple(written), "length"

    def _read(self, token_ids: Sequence[int]) -> None:
        """Read tokens in one pass, after the prompt if that has not been read yet."""
        is_first = not len(self._states)
        ids: list[int] = [*self._prompt, *token_ids] if is_first else list(token_ids)
        if not ids:
            return
        batch = torch.tensor([ids], device=self._model.device)
        hidden = self._model.encode(batch, [len(ids)], self._cache, [0])[0]
        self._passes += 1
        new: Tensor = hidden[len(self._prompt) - 1 :] if is_first else hidden
        self._states = torch.cat((self._states, new))
