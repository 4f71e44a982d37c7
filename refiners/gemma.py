"""An autoregressive Gemma 4 on the native stack, with one cache from scoring to continuing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from hybrid.conversation.tokenizer import ChatTokenizer
from hybrid.cores import available_cores
from hybrid.deadline import Deadline
from hybrid.engine.load import load_fastest
from hybrid.engine.memory import MAX_LOGITS_ROWS
from hybrid.engine.model import EngineModel
from hybrid.errors import RequestError
from hybrid.gemma.threads import Threads
from hybrid.kernels.noise import gumbel_torch, position_keys_torch, row_key
from hybrid.protocols import SamplingParams, Scores, Until
from hybrid.refiners.speculation import Source
from hybrid.types import Activations, FinishReason, PromptFormat, Request

_PURPOSE = 2  # of the random numbers; drafters use 0 and 1


class CausalModel(Protocol):
    """What a session needs of a model; `hybrid.gemma.model.gemma.GemmaModel` has it."""

    config: Any
    device: torch.device
    dtype: torch.dtype

    def new_cache(self, batch_size: int, capacity: int, spare: int | None = None) -> Any: ...

    def encode(
        self, token_ids: Tensor, lengths: Sequence[int], cache: Any, rows: Sequence[int]
    ) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


class GemmaRefiner:
    """A refiner (see `hybrid.protocols.Refiner`) on a Gemma 4 of any size."""

    def __init__(self, model: CausalModel, tokenizer: ChatTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def from_directory(
        cls, path: str | Path, device: str = "auto", activations: Activations = "float"
    ) -> Self:
        """The refiner in a model folder, on a device as `load_fastest` understands it.

        Raises CheckpointError and CapabilityError.
        """
        return cls(load_fastest(path, device, activations), ChatTokenizer.from_directory(path))

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """See `Refiner.vocabulary`."""
        return self.tokenizer.vocabulary

    @property
    def end_token_ids(self) -> frozenset[int]:
        """See `Refiner.end_token_ids`."""
        ends: frozenset[int] = self.model.config.end_token_ids
        return ends

    @property
    def concurrency(self) -> int:
        """See `Refiner.concurrency`: as many as drafting leaves cores."""
        return max(1, available_cores() - 1)

    @property
    def prompt_format(self) -> PromptFormat:
        """See `Refiner.prompt_format`."""
        return self.tokenizer.prompt_format

    def count_prompt_tokens(self, request: Request) -> int:
        """See `Refiner.count_prompt_tokens`."""
        return len(self.tokenizer.encode_conversation(request.conversation))

    def open(
        self,
        request: Request,
        max_answer_tokens: int,
        deadline: Deadline | None = None,
        sampling: SamplingParams | None = None,
    ) -> "GemmaSession":
        """See `Refiner.open`."""
        prompt = self.tokenizer.encode_conversation(request.conversation)
        limit = limit_answer_tokens(
            prompt, max_answer_tokens, self.model.config.max_position_embeddings
        )
        return GemmaSession(self.model, prompt, limit, deadline, sampling)

    def encode(self, text: str) -> list[int]:
        """See `Refiner.encode`."""
        return self.tokenizer.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """See `Refiner.decode`."""
        return self.tokenizer.decode(token_ids)

    def decode_thought(self, token_ids: Sequence[int]) -> str:
        """See `Refiner.decode_thought`."""
        return self.tokenizer.decode_thought(token_ids)


def limit_answer_tokens(prompt: Sequence[int], max_answer_tokens: int, context: int) -> int:
    """Tokens that an answer may have after a prompt; raises RequestError if there is no room."""
    if len(prompt) >= context:
        allowed = f"the prompt must leave room in the context: at most {context - 1} tokens"
        raise RequestError("prompt", f"{len(prompt)} tokens", allowed)
    return min(max_answer_tokens, context - len(prompt))


def _rows_at_a_time(vocab_size: int) -> int:
    """Rows of float32 logits that are held whole: as many as take 134 MB of a large vocabulary."""
    return max(MAX_LOGITS_ROWS, 2**25 // vocab_size)


class GemmaSession:
    """One prompt and what has been read of its answer (see `hybrid.protocols.RefinerSession`).

    `_states` [n + 1, H] are the hidden states after the prompt and after each answer token read, so
    that rewinding needs no pass.
    """

    def __init__(
        self,
        model: CausalModel,
        prompt: list[int],
        max_answer_tokens: int,
        deadline: Deadline | None = None,
        sampling: SamplingParams | None = None,
    ) -> None:
        self._model, self._prompt = model, prompt
        self._deadline, self._sampling = deadline or Deadline(), sampling or SamplingParams()
        self.max_answer_tokens = max_answer_tokens
        capacity = len(prompt) + max_answer_tokens
        self._cache = model.new_cache(1, capacity, spare=max_answer_tokens)
        self._states = torch.empty(
            0, model.config.hidden_size, device=model.device, dtype=model.dtype
        )
        self._passes = 0
        self._threads = Threads.of(model.config)

    @property
    def answer_tokens(self) -> int:
        """See `RefinerSession.answer_tokens`."""
        return max(0, len(self._states) - 1)

    @property
    def forward_passes(self) -> int:
        """See `RefinerSession.forward_passes`."""
        return self._passes

    @torch.inference_mode()
    def score(self, token_ids: Sequence[int]) -> Scores:
        """See `RefinerSession.score`."""
        first = self.answer_tokens
        with self._threads:
            self._read(token_ids)
            states, ids = self._states[first:], [*token_ids, 0]  # what follows has no score
            if isinstance(self._model, EngineModel) and not self._sampling.temperature:
                given = torch.tensor(ids, device=states.device)
                scores, best = self._model.score_and_choose(states, given)
                return Scores(tuple(scores.tolist()[:-1]), tuple(best.tolist()))
            logprobs: list[float] = []
            choices: list[int] = []
            size = _rows_at_a_time(self._model.config.vocab_size)
            for start in range(0, len(states), size):
                part = states[start : start + size]
                logits = self._model.logits(part)
                # Not of the log-probabilities: rounding makes ties that greedy decoding never sees.
                choices += self._choose(logits, first + start)
                here = ids[start : start + size]
                logprobs += logits.log_softmax(-1)[range(len(part)), here].tolist()
        return Scores(tuple(logprobs[:-1]), tuple(choices))

    def rewind(self, answer_tokens: int) -> None:
        """See `RefinerSession.rewind`."""
        if answer_tokens < self.answer_tokens:
            self._cache.rollback([0], [len(self._prompt) + answer_tokens])
            self._states = self._states[: answer_tokens + 1]

    @torch.inference_mode()
    def write(
        self,
        token_ids: Sequence[int],
        max_new_tokens: int,
        until: Until | None = None,
        source: Sequence[int] = (),
    ) -> tuple[tuple[int, ...], FinishReason]:
        """See `RefinerSession.write`."""
        left = self.max_answer_tokens - self.answer_tokens - len(token_ids)
        return self._write(token_ids, min(max_new_tokens, left), until, Source(source))

    def _write(
        self, token_ids: Sequence[int], limit: int, until: Until | None, source: Source
    ) -> tuple[tuple[int, ...], FinishReason]:
        written: list[int] = []
        unread = tuple(token_ids)
        while len(written) < limit:
            self._deadline.raise_if_cancelled()
            if self._deadline.expired:
                return tuple(written), "budget"
            proposed = source.propose(limit - len(written) - 1)
            first = self.answer_tokens + len(unread)
            with self._threads:
                if unread or proposed or not len(self._states):
                    self._read((*unread, *proposed))
                choices = self._choose(self._model.logits(self._states[first:]), first)
            before = len(written)
            reason = self._take(written, choices, proposed, limit, until)
            self.rewind(first + len(written) - before - 1)
            if reason:
                return tuple(written), reason
            source.follow(written, len(written) - before)
            unread = (written[-1],)
        return tuple(written), "length"

    def _take(
        self,
        written: list[int],
        choices: Sequence[int],
        proposed: Sequence[int],
        limit: int,
        until: Until | None,
    ) -> FinishReason | None:
        """Append own choices as far as the proposed tokens before them were the same."""
        for choice, expected in zip(choices, (*proposed, None), strict=True):
            written.append(choice)
            if choice in self._model.config.end_token_ids:
                return "stop"
            if len(written) == limit or (until is not None and until(written)):
                return "length"
            if choice != expected:
                break
        return None

    def _choose(self, logits: Tensor, first: int) -> list[int]:
        """A token for each row of logits [n, V], the answer's `first` and following ones."""
        if not self._sampling.temperature:
            chosen: list[int] = logits.argmax(-1).tolist()
            return chosen
        key = torch.tensor([row_key(self._sampling.seed, 0, 0, _PURPOSE)], device=logits.device)
        keys = position_keys_torch(key.to(torch.int32), first + len(logits))[0, first:]
        return [
            int((row / self._sampling.temperature).add_(gumbel_torch(one, len(row))).argmax())
            for row, one in zip(logits, keys, strict=True)
        ]

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
