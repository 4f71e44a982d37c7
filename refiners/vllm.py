"""A refiner on another machine: an OpenAI-compatible server, with vLLM's additions.

Prompts go out as token ids of the model's own tokenizer, read here; scores come back as
`prompt_logprobs`. The session's tokens are sent whole each time: what the server keeps of them is
its prefix cache's affair, and vLLM does not use it for requests with prompt log-probabilities. An
answer from nothing goes through the chat endpoint, which any server has.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hybrid.conversation.tokenizer import ChatTokenizer
from hybrid.deadline import Deadline
from hybrid.errors import BackendError, CapabilityError, did_you_mean
from hybrid.gemma.config import read_end_token_ids
from hybrid.protocols import SamplingParams, Scores, Until
from hybrid.refiners.gemma import limit_answer_tokens
from hybrid.refiners.server import Late, Server
from hybrid.types import FinishReason, PromptFormat, Request

_MAX_SESSIONS = 64
_CONTEXT = 131_072  # where the server does not tell
_Answer = TypeVar("_Answer", bound=BaseModel)


class ServerChoice(Protocol):
    """A policy's `models.refiner` for a server."""

    @property
    def model(self) -> str: ...
    @property
    def url(self) -> str | None: ...
    @property
    def served_as(self) -> str | None: ...
    @property
    def api_key_env(self) -> str: ...
    @property
    def timeout(self) -> float: ...


class _Part(BaseModel):
    """A part of a server's answer; what else it says is ignored."""

    model_config = ConfigDict(allow_inf_nan=False)


class _Model(_Part):
    id: str
    max_model_len: int | None = None


class _Models(_Part):
    data: list[_Model] = Field(min_length=1)


class _Logprob(_Part):
    logprob: float
    rank: int | None = None


class _Delta(_Part):
    content: str | None = None


class _Choice(_Part):
    text: str = ""
    delta: _Delta = _Delta()
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    prompt_logprobs: list[dict[int, _Logprob] | None] | None = None


class _Completion(_Part):
    choices: list[_Choice] = []  # vLLM's last event of a stream may have none


class VllmRefiner:
    """A refiner (see `hybrid.protocols.Refiner`) behind HTTP."""

    def __init__(
        self,
        server: Server,
        served_as: str,
        tokenizer: ChatTokenizer,
        end_token_ids: frozenset[int],
    ) -> None:
        self.server, self.served_as, self.tokenizer = server, served_as, tokenizer
        self._end_token_ids = end_token_ids
        self._context: int | None = None

    @classmethod
    def connect(cls, folder: Path, choice: ServerChoice) -> Self:
        """The refiner that a policy names, its tokenizer in `folder`; asks the server nothing yet,
        so that drafts need not wait for it.
        """
        assert choice.url is not None
        key = os.environ.get(choice.api_key_env)
        server = Server(choice.url.rstrip("/"), key, choice.api_key_env, choice.timeout)
        tokenizer = ChatTokenizer.from_directory(folder)
        return cls(server, choice.served_as or choice.model, tokenizer, read_end_token_ids(folder))

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """See `Refiner.vocabulary`."""
        return self.tokenizer.vocabulary

    @property
    def end_token_ids(self) -> frozenset[int]:
        """See `Refiner.end_token_ids`."""
        return self._end_token_ids

    @property
    def concurrency(self) -> int:
        """See `Refiner.concurrency`: the server batches what it is asked for."""
        return _MAX_SESSIONS

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
    ) -> "VllmSession":
        """See `Refiner.open`; the first time, this asks the server which models it has."""
        deadline = deadline or Deadline()
        prompt = self.tokenizer.encode_conversation(request.conversation)
        limit = limit_answer_tokens(prompt, max_answer_tokens, self._find_context(deadline))
        return VllmSession(
            self, request, tuple(prompt), limit, deadline, sampling or SamplingParams()
        )

    def encode(self, text: str) -> list[int]:
        """See `Refiner.encode`."""
        return self.tokenizer.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """See `Refiner.decode`."""
        return self.tokenizer.decode(token_ids)

    def decode_thought(self, token_ids: Sequence[int]) -> str:
        """See `Refiner.decode_thought`."""
        return self.tokenizer.decode_thought(token_ids)

    def read(self, stage: str, kind: type[_Answer], value: Any) -> _Answer:
        """A server's answer as `kind`; raises BackendError for anything else."""
        try:
            return kind.model_validate(value)
        except ValidationError as problem:
            place, *_ = problem.errors()
            where = ".".join(map(str, place["loc"]))
            message = f"{self.server.url}: unexpected answer: {where}: {place['msg']}"
            raise BackendError(stage, message) from None

    def _find_context(self, deadline: Deadline) -> int:
        """Tokens that fit, one of them for the token that every scoring request also writes."""
        if self._context is None:
            try:
                answer = self.server.ask("open", "/models", None, deadline)
            except Late:
                raise BackendError("open", f"{self.server.url}: no answer in time") from None
            models = {model.id: model for model in self.read("open", _Models, answer).data}
            if self.served_as not in models:
                hint = did_you_mean(self.served_as, models)
                message = f"{self.server.url} serves {[*models]}, not {self.served_as!r}{hint}"
                raise BackendError("open", message)
            self._context = (models[self.served_as].max_model_len or _CONTEXT) - 1
        return self._context


@dataclass
class VllmSession:
    """See `hybrid.protocols.RefinerSession`; `answer` are the tokens read so far."""

    refiner: VllmRefiner
    request: Request
    prompt: tuple[int, ...]
    max_answer_tokens: int
    deadline: Deadline
    sampling: SamplingParams
    answer: tuple[int, ...] = ()
    forward_passes: int = 0

    @property
    def answer_tokens(self) -> int:
        """See `RefinerSession.answer_tokens`."""
        return len(self.answer)

    def score(self, token_ids: Sequence[int]) -> Scores:
        """See `RefinerSession.score`; raises CapabilityError if the server cannot."""
        url = self.refiner.server.url
        if self.sampling.temperature:
            missing = "its random numbers are its own: verify and cascade at temperature 0"
            raise CapabilityError("scoring under sampling", url, missing)
        ids = (*self.prompt, *self.answer, *token_ids)
        body = {"prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 1}
        server, body = self.refiner.server, self._body(body)
        try:
            value = server.ask("score", "/completions", body, self.deadline)
        except Late:
            raise BackendError("score", f"{url}: no answer in time", retryable=True) from None
        scores = self._scores(token_ids, self._choice("score", value))
        self.answer += tuple(token_ids)
        self.forward_passes += 1
        return scores

    def _scores(self, token_ids: Sequence[int], choice: _Choice) -> Scores:
        """The scores of the last tokens of a prompt, and what was written after them."""
        url, places = self.refiner.server.url, choice.prompt_logprobs
        if places is None:
            missing = "the server gave no prompt_logprobs: modes rewrite and generate need none"
            raise CapabilityError("scoring", url, missing)
        if choice.token_ids is None:
            raise CapabilityError("scoring", url, "it gave no token_ids, which vLLM 0.10.2 does")
        places = places[len(self.prompt) + len(self.answer) :]
        if len(places) != len(token_ids) or len(choice.token_ids) != 1:
            given = f"{len(places)} of {len(token_ids)} tokens"
            raise BackendError("score", f"{url}: scores of {given}")
        logprobs, choices = [], []
        for token, place in zip(token_ids, places, strict=True):
            if not place or token not in place:
                raise BackendError("score", f"{url}: no log-probability of token {token}")
            best = max(one.logprob for one in place.values())
            logprobs.append(place[token].logprob)
            choices.append(next(one for one in place if place[one].logprob == best))
        return Scores(tuple(logprobs), (*choices, choice.token_ids[0]))

    def rewind(self, answer_tokens: int) -> None:
        """See `RefinerSession.rewind`."""
        self.answer = self.answer[:answer_tokens]

    def write(
        self,
        token_ids: Sequence[int],
        max_new_tokens: int,
        until: Until | None = None,
        source: Sequence[int] = (),
    ) -> tuple[tuple[int, ...], FinishReason]:
        """See `RefinerSession.write`; what was written when a stream broke is gone on from.

        Speculation is the server's own: `source` is not sent.
        """
        self.answer += tuple(token_ids)
        limit = min(max_new_tokens, self.max_answer_tokens - len(self.answer))
        writing = _Writing(self, limit, until)
        attempt = 0
        while writing.reason is None:
            self.deadline.raise_if_cancelled()
            path, body = writing.body()
            try:
                self.refiner.server.listen("continue", path, body, writing.take, self.deadline)
                writing.end()
            except Late:
                writing.reason = "budget"
            except BackendError as error:
                self.refiner.server.wait(error, attempt, self.deadline)
                attempt += 1
        self.forward_passes += len(writing.token_ids)
        self.answer += tuple(writing.token_ids[:-1])
        return tuple(writing.token_ids), writing.reason

    def _body(self, more: dict[str, Any]) -> dict[str, Any]:
        return {"model": self.refiner.served_as, "return_token_ids": True} | more

    def _choice(self, stage: str, value: Any) -> _Choice:
        choices = self.refiner.read(stage, _Completion, value).choices
        if not choices:
            raise BackendError(stage, f"{self.refiner.server.url}: an answer without choices")
        return choices[0]


class _Writing:
    """One answer as it streams in; `reason` is set when it is over."""

    def __init__(self, session: VllmSession, limit: int, until: Until | None) -> None:
        self._session, self._limit, self._until = session, limit, until
        self.token_ids: list[int] = []
        self._text = ""
        self._has_ids = True
        self._finish: str | None = None
        self.reason: FinishReason | None = "length" if limit <= 0 else None

    def body(self) -> tuple[str, dict[str, Any]]:
        """The next request: chat from nothing, else a completion of all tokens so far."""
        session = self._session
        self._text = ""
        sampling = session.sampling
        body = {
            "max_tokens": self._limit - len(self.token_ids),
            "temperature": sampling.temperature,
            "seed": sampling.seed,
            "stream": True,
        }
        conversation = session.request.conversation
        begins = not session.answer and not self.token_ids
        if begins and session.refiner.tokenizer.is_plain(conversation):
            turns = [{"role": m.role, "content": m.content} for m in conversation]
            return "/chat/completions", session._body(body | {"messages": turns})
        ids = (*session.prompt, *session.answer, *self.token_ids)
        ends = sorted(session.refiner.end_token_ids)
        return "/completions", session._body(body | {"prompt": ids, "stop_token_ids": ends})

    def take(self, value: dict[str, Any]) -> bool:
        """One event; True once no more is wanted."""
        choices = self._session.refiner.read("continue", _Completion, value).choices
        if not choices:
            return False
        choice = choices[0]
        self._finish = choice.finish_reason or self._finish
        self._text += choice.text + (choice.delta.content or "")
        if choice.token_ids is None:
            self._has_ids = self._has_ids and not (choice.text or choice.delta.content)
            return False
        return any(self._add(token) for token in choice.token_ids)

    def end(self) -> None:
        """The stream has come to its end: why?"""
        refiner = self._session.refiner
        if self.reason is not None:
            return
        if not self._has_ids:  # a server without token ids: its text is read with our tokenizer
            if self._session.answer:
                missing = "it gave no token_ids, which vLLM 0.10.2 does"
                raise CapabilityError("continuing", refiner.server.url, missing)
            self.token_ids = refiner.tokenizer.encode(self._text)[: self._limit]
        if self._finish == "stop":
            if not set(self.token_ids[-1:]) & refiner.end_token_ids:
                self.token_ids.append(min(refiner.end_token_ids))
            self.reason = "stop"
        else:
            self.reason = "length"

    def _add(self, token: int) -> bool:
        """Append a token; True if the answer is over with it."""
        self.token_ids.append(token)
        if token in self._session.refiner.end_token_ids:
            self.reason = "stop"
        elif len(self.token_ids) >= self._limit or (self._until and self._until(self.token_ids)):
            self.reason = "length"
        return self.reason is not None
