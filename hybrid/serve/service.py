"""Answers calls: the one place where HTTP meets `AsyncHybrid`.

All choices of a call are drafted together. Whoever cancels `answer` frees its rows within one
denoising step, because each choice is a stream that is closed then.
"""

import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio

from hybrid.api import AsyncHybrid
from hybrid.errors import HybridError, RequestError
from hybrid.requests import Options, Prompt
from hybrid.serve.call import (
    Answer,
    Call,
    Choice,
    Delta,
    DraftFrame,
    DraftText,
    Ended,
    Head,
    Part,
    Patch,
    Started,
)
from hybrid.serve.errors import ApiError, api_error
from hybrid.serve.policies import ServedPolicies
from hybrid.serve.settings import Settings
from hybrid.serve.stop_strings import StopCutter, cut
from hybrid.types import Denoised, Drafted, Finished, Patched, Plan, Planned, Result, Written

Emit = Callable[[Part], None]
Observer = Callable[[Call, Head, Choice | None, BaseException | None], None]
_UNCHANGED = ("none", "score")  # refine modes whose answer is the draft


@dataclass
class Service:
    """The policies, and what is being answered under them.

    `observers` are told of every choice that ended, well or not: metrics, records and logs.
    """

    policies: ServedPolicies
    settings: Settings
    workers: int = 0
    observers: list[Observer] = field(default_factory=list)
    in_flight: int = field(default=0, init=False)
    is_loaded: bool = field(default=False, init=False)
    load_error: str | None = field(default=None, init=False)
    is_draining: bool = field(default=False, init=False)
    started: int = field(default_factory=lambda: int(time.time()), init=False)
    _scopes: set[anyio.CancelScope] = field(default_factory=set, init=False)

    def load(self) -> None:
        """Load the models; what is wrong with them stays in `load_error`. Blocks."""
        try:
            self.policies.default.current()[0].load()
            self.is_loaded = True
        except Exception as error:
            self.load_error = str(error)
            raise

    def close(self) -> None:
        """Keep what was learned and let go of the models."""
        self.policies.default.current()[0].close()

    def head(self, call: Call) -> Head:
        """What the parts of the answer will share; raises ApiError (404) for an unknown model."""
        served = self.policies.find(call.model)
        return Head(served.name, served.current()[1])

    async def answer(self, call: Call, head: Head, emit: Emit | None = None) -> Answer:
        """All choices; `emit` is told of parts as they happen.

        Raises ApiError or HybridError; the first that fails ends the others.
        """
        hybrid = self.policies.find(call.model).current()[0]
        with self._admitted() as scope:
            work = _Choices(call, head, AsyncHybrid(hybrid), emit or _nobody, self.observers)
            answer = await work.run()
        if scope.cancelled_caught:
            raise ApiError(503, "the server is stopping, and your request had to end", "stopping")
        return answer

    async def explain(self, call: Call, names: Mapping[str, str]) -> Plan:
        """The decision for a call's first prompt; runs no model. Raises ApiError."""
        prompt, options = call.prompts[0], call.options
        hybrid = self.policies.find(call.model).current()[0]
        with self._admitted():
            try:
                return await anyio.to_thread.run_sync(lambda: hybrid.explain(prompt, **options))
            except HybridError as error:
                raise api_error(error, names) from error

    async def count_tokens(self, call: Call, names: Mapping[str, str]) -> int:
        """The tokens of a call's first prompt; raises ApiError."""
        hybrid = self.policies.find(call.model).current()[0]
        with self._admitted():
            try:
                return await anyio.to_thread.run_sync(hybrid.count_prompt_tokens, call.prompts[0])
            except HybridError as error:
                raise api_error(error, names) from error

    def refuse_if_not_ready(self) -> None:
        """Raises ApiError (503) while the models load and once the server stops."""
        if self.is_draining:
            raise ApiError(503, "the server is stopping", "stopping", retry_after_s=5.0)
        if not self.is_loaded:
            why = f"the models did not load: {self.load_error}" if self.load_error else None
            message = why or "the models are loading"
            raise ApiError(503, message, "loading", retry_after_s=None if why else 2.0)

    def cancel_all(self) -> None:
        """End what is being answered; its clients are told that the server stops."""
        for scope in [*self._scopes]:
            scope.cancel()

    @contextmanager
    def _admitted(self) -> Iterator[anyio.CancelScope]:
        self.refuse_if_not_ready()
        if self.in_flight >= self.settings.max_in_flight:
            message = f"{self.in_flight} requests are being answered, as many as are allowed"
            raise ApiError(429, message, "queue_full", retry_after_s=1.0)
        self.in_flight += 1
        try:
            with anyio.CancelScope() as scope:
                self._scopes.add(scope)
                yield scope
        finally:
            self._scopes.discard(scope)
            self.in_flight -= 1


@dataclass
class _Choices:
    """The choices of one call while they are answered."""

    call: Call
    head: Head
    hybrid: AsyncHybrid
    emit: Emit
    observers: list[Observer]

    async def run(self) -> Answer:
        call = self.call
        seed = call.options.get("seed")
        if call.n > 1 and seed is None:
            seed = secrets.randbits(31)
        jobs = []
        for number, prompt in enumerate(call.prompts):
            for k in range(call.n):
                options = Options(**call.options)
                if seed is not None:
                    options["seed"] = (seed + k) % 2**63
                jobs.append((number * call.n + k, prompt, options))
        found = await _all([lambda job=job: self._choice(*job) for job in jobs])  # type: ignore[misc]
        return Answer(self.head, found, call.n)

    async def _choice(self, index: int, prompt: Prompt, options: Options) -> Choice:
        try:
            choice = await self._follow(index, prompt, options)
        except BaseException as error:
            for observe in self.observers:
                observe(self.call, self.head, None, error)
            raise
        for observe in self.observers:
            observe(self.call, self.head, choice, None)
        self.emit(Ended(choice))
        return choice

    async def _follow(self, index: int, prompt: Prompt, options: Options) -> Choice:
        """One choice from its plan to its end."""
        call, extension = self.call, self.call.extension
        text = _Text(index, call, self.emit)
        pieces: dict[int, tuple[str, ...]] = {}
        is_settled = is_written_alone = False
        async for event in self.hybrid.stream(prompt, **options):
            match event:
                case Planned():
                    is_settled = event.plan.refine.mode in _UNCHANGED
                    is_written_alone = event.plan.draft is None
                    started = Started(index, event.signals.prompt_tokens)
                    if not call.logprobs:
                        self.emit(started)
                case Denoised():
                    pieces[event.canvas] = event.pieces
                    if extension.stream_drafts and not call.logprobs:
                        self.emit(DraftFrame(index, event))
                case Drafted():
                    if extension.stream_patches and not call.logprobs:
                        self.emit(DraftText(index, event.draft.text))
                    if is_settled and not call.logprobs:
                        text.advance(_inner(event.draft.text, call.between))
                case Written():
                    if is_written_alone:
                        text.advance(event.text)
                case Patched():
                    if extension.stream_patches:
                        self.emit(Patch(index, event.refinement.edits))
                case Finished():
                    result = event.result
        logprobs = None
        if call.logprobs:  # which may be refused, and so nothing has been sent yet
            logprobs = _logprobs(result, pieces)
            self.emit(started)
        text.finish(result.text)
        final, stop = cut(_inner(result.text, call.between), call.stop)
        return Choice(index, final, result, stop, logprobs)


class _Text:
    """A choice's final text on its way out, as far as it is known, without what lies outside."""

    def __init__(self, index: int, call: Call, emit: Emit) -> None:
        self._index, self._between, self._emit = index, call.between, emit
        self._cutter = StopCutter(call.stop)
        self._taken = 0

    def advance(self, text: str) -> None:
        """The text up to here will not change."""
        new = text[self._taken :]
        self._taken = max(self._taken, len(text))
        self._tell(self._cutter.feed(new))

    def finish(self, text: str) -> None:
        """The whole text."""
        self.advance(_inner(text, self._between))
        self._tell(self._cutter.end())

    def _tell(self, text: str) -> None:
        if text:
            self._emit(Delta(self._index, text))


def _inner(text: str, between: tuple[str, str] | None) -> str:
    """What a fill in the middle wrote: the text without both of its sides."""
    if between is None:
        return text
    before, after = between
    # A blank's first token brings its own space, and an empty one none at all.
    start = len(before) if text.startswith(before) else len(before.rstrip(" "))
    rest = text[start:]
    ending = next((a for a in (after, after.lstrip(" ")) if rest.endswith(a)), "")
    return rest[: len(rest) - len(ending)]


def _logprobs(result: Result, pieces: dict[int, tuple[str, ...]]) -> tuple[tuple[str, float], ...]:
    """The answer's tokens with their log-probabilities; raises RequestError if none scored them."""
    verdict, draft = result.verdict, result.draft
    texts = [piece for canvas in sorted(pieces) for piece in pieces[canvas]]
    is_draft = draft is not None and result.token_ids == draft.token_ids
    if not verdict or not is_draft or len(verdict.logprobs) < len(texts) or not verdict.logprobs:
        allowed = (
            f"leave it out: the plan {result.plan.label!r} did not score its answer; "
            "hybrid.refine: score does"
        )
        raise RequestError("logprobs", True, allowed)
    return tuple(zip(texts, verdict.logprobs, strict=False))


async def _all(jobs: list[Callable[[], Awaitable[Choice]]]) -> list[Choice]:
    """The jobs' results in their order, worked on together; the first error ends the others."""
    if len(jobs) == 1:
        return [await jobs[0]()]
    found: dict[int, Choice] = {}

    async def work(place: int) -> None:
        found[place] = await jobs[place]()

    try:
        async with anyio.create_task_group() as tasks:
            for place in range(len(jobs)):
                tasks.start_soon(work, place)
    except BaseExceptionGroup as group:
        errors = [error for error in group.exceptions if isinstance(error, Exception)]
        raise (api_error(errors[0]) if errors else group) from None
    return [found[place] for place in range(len(jobs))]


def _nobody(part: Part) -> None:
    """Nobody listens."""
