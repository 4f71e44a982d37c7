"""A refiner that writes what it was told to: for tests of everything around a refiner.

Its tokens are the UTF-8 bytes of the text; `END` is the end token. It is sure of its own answers
(log-probability -0.1 a token) and thinks little of anything else (-5).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hybrid.deadline import Deadline
from hybrid.errors import BackendError, RequestError
from hybrid.protocols import SamplingParams, Scores, Until
from hybrid.types import FinishReason, Request

END = 256
Stage = Literal["open", "score", "continue"]
_SURE, _DOUBTFUL = -0.1, -5.0


@dataclass(frozen=True)
class ScriptedRefiner:
    """Answers by prompt; `fails_at` makes that stage raise BackendError."""

    answers: Mapping[str, str]
    fails_at: Stage | None = None
    end_token_ids: frozenset[int] = field(default=frozenset({END}), init=False)
    concurrency: int = 1

    @property
    def prompt_format(self) -> None:
        """There is no template."""
        return None

    def count_prompt_tokens(self, request: Request) -> int:
        """See `Refiner.count_prompt_tokens`."""
        return len(request.question.encode())

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """See `Refiner.vocabulary`: the bytes, by their number."""
        return {str(byte): byte for byte in range(END)}

    def open(
        self,
        request: Request,
        max_answer_tokens: int,
        deadline: Deadline | None = None,
        sampling: SamplingParams | None = None,
    ) -> "ScriptedSession":
        """See `Refiner.open`; raises RequestError for a prompt without an answer."""
        if self.fails_at == "open":
            raise BackendError("open", "scripted failure", retryable=True)
        prompt = request.question
        if prompt not in self.answers:
            raise RequestError("prompt", prompt, f"scripted are {sorted(self.answers)}")
        answer = [*self.answers[prompt].encode(), END]
        return ScriptedSession(answer, self.fails_at, max_answer_tokens, deadline or Deadline())

    def encode(self, text: str) -> list[int]:
        """See `Refiner.encode`."""
        return list(text.encode())

    def decode_thought(self, token_ids: Sequence[int]) -> str:
        """It thinks nothing."""
        return ""

    def decode(self, token_ids: Sequence[int]) -> str:
        """See `Refiner.decode`."""
        return bytes(token for token in token_ids if token != END).decode(errors="replace")


@dataclass
class ScriptedSession:
    """See `hybrid.protocols.RefinerSession`; `read` are the answer tokens read so far."""

    answer: list[int]
    fails_at: Stage | None
    max_answer_tokens: int
    deadline: Deadline
    read: list[int] = field(default_factory=list)
    forward_passes: int = 0

    @property
    def answer_tokens(self) -> int:
        """See `RefinerSession.answer_tokens`."""
        return len(self.read)

    def score(self, token_ids: Sequence[int]) -> Scores:
        """See `RefinerSession.score`."""
        if self.fails_at == "score":
            raise BackendError("score", "scripted failure", retryable=True)
        choices = [self._choice()]
        logprobs = []
        for token in token_ids:
            logprobs.append(_SURE if token == choices[-1] else _DOUBTFUL)
            self.read.append(token)
            choices.append(self._choice())
        self.forward_passes += 1
        return Scores(tuple(logprobs), tuple(choices))

    def rewind(self, answer_tokens: int) -> None:
        """See `RefinerSession.rewind`."""
        del self.read[answer_tokens:]

    def write(
        self,
        token_ids: Sequence[int],
        max_new_tokens: int,
        until: Until | None = None,
        source: Sequence[int] = (),
    ) -> tuple[tuple[int, ...], FinishReason]:
        """See `RefinerSession.write`; a pass a token, whatever the source."""
        if self.fails_at == "continue":
            raise BackendError("continue", "scripted failure", retryable=True)
        self.read += token_ids
        written: list[int] = []
        while len(written) < max_new_tokens:
            self.deadline.raise_if_cancelled()
            if self.deadline.expired:
                return tuple(written), "budget"
            self.read += written[-1:]
            self.forward_passes += 1
            written.append(self._choice())
            if written[-1] == END:
                return tuple(written), "stop"
            if until is not None and until(written):
                break
        return tuple(written), "length"

    def _choice(self) -> int:
        """The answer's next token while it has been followed, else an end."""
        place = len(self.read)
        followed = self.read == self.answer[:place] and place < len(self.answer)
        return self.answer[place] if followed else END
