"""What a device must do for a drafting engine, and reading text into the KV cache, alike on all.

A CPU computes a denoising step when it is asked for. A GPU is asked for the next step before the
host has looked at the last, so a sequence may learn of a step one step later.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from hybrid.drafters.noise import Noise
from hybrid.drafters.sequence import DraftSequence
from hybrid.gemma.config import GemmaConfig
from hybrid.protocols import Votes


class ModelRunner(Protocol):
    """Runs a model over the sequences of one engine; each has its row of the KV cache."""

    @property
    def max_batch_size(self) -> int:
        """How many sequences fit in the cache."""
        ...

    @property
    def max_total_tokens(self) -> int:
        """Most tokens of one sequence, prompt and answer together."""
        ...

    def prefill(self, sequences: Sequence[DraftSequence]) -> None:
        """Read the prompts into the cache in one pass, and start the first canvases."""
        ...

    def denoise(self, sequences: Sequence[DraftSequence]) -> list[DraftSequence]:
        """Ask for one step of each; the sequences that have learned of one since the last call."""
        ...

    def synchronize(self, sequences: Sequence[DraftSequence]) -> list[DraftSequence]:
        """Wait until these know of all their steps; those of them that did not."""
        ...

    def apply_votes(self, sequence: DraftSequence, votes: Votes) -> None:
        """Change the sequence's canvas as its guide wants; it knows of all its steps."""
        ...

    def commit(self, sequences: Sequence[DraftSequence]) -> None:
        """Read finished canvases into the cache, score those that ask for it, start the next."""
        ...


class CachedModel(Protocol):
    """The causal half of a drafter's model: reading tokens and scoring them."""

    @property
    def config(self) -> GemmaConfig: ...

    @property
    def device(self) -> torch.device: ...

    def new_cache(self, batch_size: int, capacity: int) -> Any: ...

    def clear_row(self, cache: Any, row: int) -> None: ...

    def encode(self, token_ids: Tensor, lengths: Any, cache: Any, rows: Any) -> Tensor: ...

    def read(self, token_ids: Tensor, lengths: Any, cache: Any, rows: Any) -> None: ...

    def score(self, hidden: Tensor, token_ids: Tensor) -> Tensor: ...


def random_canvases(
    noise: Noise, config: GemmaConfig, sequences: Sequence[DraftSequence]
) -> Tensor:
    """The random tokens [R, C] that follow each sequence's current step."""
    draws = [sequence.draw(sequence.step) for sequence in sequences]
    return noise.tokens(draws, config.canvas_length, config.vocab_size)


def read_prompts(model: CachedModel, cache: Any, sequences: Sequence[DraftSequence]) -> None:
    """Read prompts into empty rows of the cache."""
    for sequence in sequences:
        model.clear_row(cache, sequence.row)
    hidden = _read(model, cache, sequences, [sequence.prompt_ids for sequence in sequences])
    for sequence, states in zip(sequences, hidden, strict=True):
        sequence.last_hidden = states[-1:]


def read_canvases(model: CachedModel, cache: Any, sequences: Sequence[DraftSequence]) -> None:
    """Read the answers of finished canvases into the cache, and score the jobs that ask for it."""
    hidden = _read(model, cache, sequences, [sequence.latest_ids for sequence in sequences])
    for sequence, states in zip(sequences, hidden, strict=True):
        if sequence.job.self_score:
            assert sequence.last_hidden is not None
            before = torch.cat((sequence.last_hidden, states[:-1]))
            ids = torch.tensor(sequence.latest_ids, device=before.device)
            sequence.self_logprobs += model.score(before, ids).tolist()
        sequence.last_hidden = states[-1:]


def _read(
    model: CachedModel,
    cache: Any,
    sequences: Sequence[DraftSequence],
    token_ids: Sequence[Sequence[int]],
) -> list[Tensor]:
    """Read tokens causally after what each row holds; their hidden states, [T, H] each.

    Where no job is scored there are none: [0, H].
    """
    lengths, rows = [len(ids) for ids in token_ids], [sequence.row for sequence in sequences]
    padded = [[*ids, *[0] * (max(lengths) - len(ids))] for ids in token_ids]
    ids = torch.tensor(padded, device=model.device)
    hidden = torch.empty(len(rows), 0, model.config.hidden_size)
    if any(sequence.job.self_score for sequence in sequences):
        hidden = model.encode(ids, lengths, cache, rows)
    else:
        model.read(ids, lengths, cache, rows)
    if ids.is_cuda:  # else the first step would be timed with it
        torch.cuda.current_stream(ids.device).synchronize()
    return [states[:length] for states, length in zip(hidden, lengths, strict=True)]
