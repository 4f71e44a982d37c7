"""What a drafter and a refiner must do. A backend is anything that fits; none is a subclass.

Both take whole requests and encode prompts themselves, so that a backend may live on another
machine. Token ids are shared: a refiner reads the drafter's ids, never its text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hybrid.deadline import Deadline
from hybrid.types import Denoised, Draft, DraftParams, FinishReason, PromptFormat, Request


@dataclass(frozen=True, slots=True)
class Votes:
    """A guide's opinion of a canvas: positions to keep from now on, positions to start again from
    random tokens, and pairs of a position and a token id that may not be written there.
    """

    approved: frozenset[int] = frozenset()
    vetoed: frozenset[int] = frozenset()
    banned_tokens: frozenset[tuple[int, int]] = frozenset()


class Guide(Protocol):
    """Votes on a canvas while it is denoised; raises nothing but Cancelled."""

    @property
    def every(self) -> int:
        """Steps between two reviews; a canvas that would end is reviewed too."""
        ...

    def review(self, before: Sequence[int], token_ids: Sequence[int]) -> Votes:
        """The votes on a canvas's answer so far, which follows the tokens `before`."""
        ...


@dataclass(frozen=True, slots=True)
class DraftJob:
    """One draft that is asked for.

    `seed` alone fixes the draft's random numbers, whatever else is in the batch. `warm_start` token
    ids, if any, are the first canvas instead of random ones. `fixed_token_ids`, if any, are the
    whole answer, one canvas of it: token ids to keep, None where the drafter writes. `self_score`
    asks for `self_logprobs`. `guide`, if any, votes on the canvas every few steps. `on_step` is
    called in the engine's thread.
    """

    request: Request
    params: DraftParams
    seed: int
    max_new_tokens: int
    deadline: Deadline
    on_step: Callable[[Denoised], None] | None = None
    warm_start: tuple[int, ...] = ()
    fixed_token_ids: tuple[int | None, ...] = ()
    self_score: bool = False
    guide: Guide | None = None


class Drafter(Protocol):
    """Writes whole answers at once by denoising; any number of threads may call it."""

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token ids by their text, without special tokens."""
        ...

    @property
    def canvas_length(self) -> int:
        """Tokens denoised together."""
        ...

    @property
    def max_context(self) -> int:
        """Most tokens that prompt and answer may have together."""
        ...

    @property
    def concurrency(self) -> int:
        """How many drafts take about as long as one."""
        ...

    @property
    def prompt_format(self) -> PromptFormat | None:
        """How conversations are written; None for a model without a chat template."""
        ...

    def count_prompt_tokens(self, request: Request) -> int:
        """Tokens of the rendered prompt."""
        ...

    def count_blank_tokens(self, request: Request) -> int:
        """Tokens to fill in the request's infill template, 0 without one.

        Raises RequestError if the template is malformed or does not fit in a canvas.
        """
        ...

    def draft(self, jobs: Sequence[DraftJob]) -> list[Draft]:
        """Drafts in the order of `jobs`, denoised together and with other callers' jobs.

        A job whose deadline passes returns its best canvas so far with `finish_reason="budget"`; a
        cancelled one raises Cancelled for all of `jobs`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Scores:
    """The refiner's view of given tokens: log-probability of each, and its own choice instead.

    `choices` has one entry more than `logprobs`: what the refiner would write after the last token.
    They follow the session's sampling, log-probabilities are those at temperature 1.
    """

    logprobs: tuple[float, ...]
    choices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a refiner chooses its tokens: the likeliest at temperature 0, else at random.

    The random numbers depend on seed and place alone. So the same text comes out whatever part of
    it was proposed by a draft, and accepting a draft where it agrees is the exact accept/reject
    rule for a proposal without a distribution of its own (Leviathan et al. 2023, section 2.3).
    """

    temperature: float = 0.0
    seed: int = 0


Until = Callable[[Sequence[int]], bool]


class RefinerSession(Protocol):
    """A refiner at work on one request; keeps the cache of everything it has read."""

    @property
    def answer_tokens(self) -> int:
        """Tokens of the answer that it has read."""
        ...

    @property
    def max_answer_tokens(self) -> int:
        """Most tokens of an answer that there is room for."""
        ...

    @property
    def forward_passes(self) -> int:
        """Passes through the model so far, the prompt's included."""
        ...

    def score(self, token_ids: Sequence[int]) -> Scores:
        """Read `token_ids` after what was read before, in one pass."""
        ...

    def rewind(self, answer_tokens: int) -> None:
        """Forget all but the prompt and the first `answer_tokens` tokens of the answer."""
        ...

    def write(
        self,
        token_ids: Sequence[int],
        max_new_tokens: int,
        until: Until | None = None,
        source: Sequence[int] = (),
    ) -> tuple[tuple[int, ...], FinishReason]:
        """Read `token_ids`, then write tokens of its own up to and including an end token.

        Returns the written tokens only. Stops with "length" at the limit, or once `until` says yes
        to what is written, with "budget" at the deadline, and raises Cancelled when cancelled.
        `source` is text that will be copied in part: it changes the number of passes, not the
        answer.
        """
        ...


class Refiner(Protocol):
    """An autoregressive model that scores, continues and writes."""

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token ids by their text, without special tokens."""
        ...

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ...

    @property
    def concurrency(self) -> int:
        """How many sessions may work side by side without making all of them late."""
        ...

    @property
    def prompt_format(self) -> PromptFormat | None:
        """How conversations are written; None for a model without a chat template."""
        ...

    def count_prompt_tokens(self, request: Request) -> int:
        """Tokens of the rendered prompt."""
        ...

    def open(
        self,
        request: Request,
        max_answer_tokens: int,
        deadline: Deadline | None = None,
        sampling: SamplingParams | None = None,
    ) -> RefinerSession:
        """A session on the request's prompt, with room for an answer as far as the context allows.

        Reads nothing yet. Raises RequestError if the prompt does not fit in the context, and
        CapabilityError for a sampling that it cannot do.
        """
        ...

    def encode(self, text: str) -> list[int]:
        """The tokens of an answer, without an end token."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of an answer's tokens, without end and padding tokens and thoughts."""
        ...

    def decode_thought(self, token_ids: Sequence[int]) -> str:
        """The text of what an answer's tokens think, empty where they do not."""
        ...
