"""Rows drafted together: each enters, denoises and leaves on its own.

One row may be committing its second canvas while another takes the first step of its first; a row
that has left makes room for the next at once. Between steps every row is asked whether its time is
up. What goes wrong for one row ends that row alone.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from hybrid.deadline import Deadline
from hybrid.drafters.device import denoiser_of
from hybrid.drafters.noise import Draw, Noise
from hybrid.drafters.pacing import Pacing
from hybrid.drafters.row import Row
from hybrid.drafters.template import Template
from hybrid.gemma.config import GemmaConfig
from hybrid.gemma.threads import Threads
from hybrid.gemma.tokenizer import ChatTokenizer
from hybrid.protocols import DraftJob
from hybrid.types import Canvas, Denoised, Draft, DraftTiming, FinishReason


class CachingModel(Protocol):
    """What a batch needs of a model besides denoising."""

    @property
    def config(self) -> GemmaConfig: ...

    @property
    def device(self) -> torch.device: ...

    def new_cache(self, batch_size: int, capacity: int) -> Any: ...

    def clear_row(self, cache: Any, row: int) -> None: ...

    def encode(self, token_ids: Tensor, lengths: Any, cache: Any, rows: Any) -> Tensor: ...

    def read(self, token_ids: Tensor, lengths: Any, cache: Any, rows: Any) -> None: ...

    def score(self, hidden: Tensor, token_ids: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Assignment:
    """A checked job: its prompt's tokens, its template, and the tokens that both may take."""

    job: DraftJob
    prompt: tuple[int, ...]
    template: Template | None
    room: int


class DraftBatch:
    """`slots` rows of up to `capacity` tokens each; see `hybrid.protocols.DraftBatch`."""

    def __init__(
        self,
        model: CachingModel,
        tokenizer: ChatTokenizer,
        noise: Noise,
        slots: int,
        capacity: int,
    ) -> None:
        self._model, self._tokenizer, self._noise = model, tokenizer, noise
        self._cache = model.new_cache(slots, capacity)
        self._denoiser = denoiser_of(model, self._cache, noise, slots)
        self._free = list(range(slots - 1, -1, -1))
        self._rows: dict[int, _Work] = {}
        self._pacing = Pacing(in_turns=model.device.type == "cpu")
        self.capacity = capacity

    @property
    def active(self) -> int:
        """Rows at work."""
        return len(self._rows)

    @property
    def free(self) -> int:
        """Rows that could be admitted now."""
        return len(self._free)

    def is_urgent(self, deadline: Deadline, joining: int = 0) -> bool:
        """Whether a deadline cannot wait for a step of all rows, with those `joining`."""
        return self._pacing.is_urgent(deadline, len(self._rows) + joining)

    @property
    def has_urgent(self) -> bool:
        """Whether a row cannot wait for a step of all."""
        return any(self.is_urgent(work.row.job.deadline) for work in self._rows.values())

    def admit(self, assignments: Sequence[Assignment]) -> list[int]:
        """Read the prompts, in one pass, and start a row for each; the rows' numbers.

        There must be as many free rows, and capacity for each one's room.
        """
        numbers = [self._free.pop() for _ in assignments]
        is_urgent = any(self.is_urgent(assignment.job.deadline) for assignment in assignments)
        with torch.inference_mode(), Threads.of(self._model.config, is_urgent):
            for number in numbers:
                self._model.clear_row(self._cache, number)
            started = time.perf_counter()
            jobs = [assignment.job for assignment in assignments]
            hidden = self._read([assignment.prompt for assignment in assignments], numbers, jobs)
            seconds = time.perf_counter() - started
            deadlines = [job.deadline for job in jobs]
            self._pacing.joined(dict(zip(numbers, deadlines, strict=True)), seconds)
            canvases = self._random_canvases([Draw(job.seed, canvas=0, step=0) for job in jobs])
            for number, assignment, states, canvas_ids in zip(
                numbers, assignments, hidden, canvases, strict=True
            ):
                row = Row(assignment.job, number, canvas_ids, template=assignment.template)
                row.warm_start(assignment.job.warm_start)
                self._denoiser.begin(row)
                room = assignment.room - len(assignment.prompt)
                self._rows[number] = _Work(row, room, states[-1:], prefill_s=seconds)
        return numbers

    def release(self, number: int) -> None:
        """Give up a row; nothing comes of it."""
        if self._rows.pop(number, None) is not None:
            self._free.append(number)

    def step(self) -> dict[int, Draft | Exception]:
        """One denoising step; what became of the rows that have ended with it.

        All rows take it, or some; see `hybrid.drafters.pacing`. None do if meanwhile the time of
        some has run out: they end first.
        """
        config = self._model.config
        with torch.inference_mode():
            if any(work.canvas_ended and work.row.step for work in self._rows.values()):
                with Threads.of(config, is_urgent=True):
                    return self._end(stepped=())
            turn = self._pacing.choose({n: w.row.job.deadline for n, w in self._rows.items()})
            active = {number: self._rows.pop(number) for number in turn.rows}
            self._rows |= active  # whoever has just had a turn is the last
            with Threads.of(config, turn.is_urgent):
                started = time.perf_counter()
                known = self._denoiser.step([work.row for work in active.values()])
                seconds = time.perf_counter() - started
                self._pacing.stepped(turn, seconds)
                for work in active.values():
                    work.denoise_s += seconds
                return self._end(active.keys(), known)

    def _end(
        self, stepped: Collection[int], known: Sequence[Row] = ()
    ) -> dict[int, Draft | Exception]:
        """What became of the rows that have ended, after a step of some that is `known` of some."""
        ended: dict[int, Draft | Exception] = {}
        for number, work in self._rows.items():
            try:
                if work.row in known:
                    self._review(work.row)
                    self._report(work.row)
                work.row.job.deadline.raise_if_cancelled()
            except Exception as error:
                ended[number] = error
        ending = [
            work
            for number, work in self._rows.items()
            if number not in ended
            and work.canvas_ended
            and (number in stepped or work.row.step)  # else there is no draft
        ]
        for row in self._denoiser.settle([w.row for w in ending if not w.row.canvas_done]):
            self._report(row)
        self._end_canvases(ending)
        for number, work in self._rows.items():
            if number not in ended and work.finish_reason is not None:
                ended[number] = self._result(work, work.finish_reason)
        for number in ended:
            self.release(number)
        return ended

    def _read(
        self, token_ids: Sequence[Sequence[int]], rows: Sequence[int], jobs: Sequence[DraftJob]
    ) -> list[Tensor]:
        """Read rows of tokens causally into the cache; their hidden states, [T, H] each.

        Where no job is scored there are none: [0, H].
        """
        lengths = [len(ids) for ids in token_ids]
        padded = [[*ids, *[0] * (max(lengths) - len(ids))] for ids in token_ids]
        ids = torch.tensor(padded, device=self._model.device)
        hidden = torch.empty(len(rows), 0, self._model.config.hidden_size)
        if any(job.self_score for job in jobs):
            hidden = self._model.encode(ids, lengths, self._cache, rows)
        else:
            self._model.read(ids, lengths, self._cache, rows)
        if ids.is_cuda:  # else the first step would be timed with it
            torch.cuda.current_stream(ids.device).synchronize()
        return [states[:length] for states, length in zip(hidden, lengths, strict=True)]

    def _random_canvases(self, draws: Sequence[Draw]) -> Tensor:
        config = self._model.config
        return self._noise.tokens(draws, config.canvas_length, config.vocab_size)

    def _review(self, row: Row) -> None:
        """Let the row's guide vote, every few steps and before the canvas ends."""
        guide = row.job.guide
        if guide is None or not (row.converged or row.step % guide.every == 0):
            return
        token_ids = row.best_ids.tolist()
        count = self._count_answer(token_ids, row.template)
        votes = guide.review(row.written, token_ids[: count + 1])
        row.follow(votes, self._random_canvases([row.draw(row.step)])[0])
        self._denoiser.change(row)

    def _report(self, row: Row) -> None:
        """Tell whoever listens what the step has made of the canvas."""
        if row.job.on_step is None:
            return
        token_ids = row.best_ids.tolist()
        count = self._count_answer(token_ids, row.template)
        row.job.on_step(
            Denoised(
                canvas=row.canvas,
                step=row.step,
                max_denoising_steps=row.job.params.max_denoising_steps,
                pieces=tuple(self._tokenizer.pieces(token_ids[:count])),
                accepted=tuple(row.accepted.tolist()[:count]),
                entropy=tuple(row.entropy.tolist()[:count]),
            )
        )

    def _count_answer(self, token_ids: Sequence[int], template: Template | None) -> int:
        """How many tokens come before the end token, the first one after all given text."""
        ends = self._model.config.end_token_ids
        least = template.least_tokens if template else 0
        places = range(least, len(token_ids))
        return next((place for place in places if token_ids[place] in ends), len(token_ids))

    def _end_canvases(self, works: Sequence["_Work"]) -> None:
        """Take over finished canvases; commit those that are followed or scored, start the next."""
        for work in works:
            self._take_canvas(work)
        to_read = [work for work in works if work.is_read_again]
        if not to_read:
            return
        started = time.perf_counter()
        hidden = self._read(
            [work.latest_ids for work in to_read],
            [work.row.cache_row for work in to_read],
            [work.row.job for work in to_read],
        )
        for work, states in zip(to_read, hidden, strict=True):
            if work.row.job.self_score:
                before = torch.cat((work.last_hidden, states[:-1]))
                work.self_logprobs += self._score(before, work.latest_ids)
            work.last_hidden = states[-1:]
        seconds = time.perf_counter() - started
        for work in to_read:
            work.commit_s += seconds
            if work.finish_reason is None:
                draw = Draw(work.row.job.seed, work.row.canvas + 1, step=0)
                work.row.next_canvas(self._random_canvases([draw])[0], work.token_ids)
                self._denoiser.begin(work.row)

    def _take_canvas(self, work: "_Work") -> None:
        """Append the canvas's answer to the row's, and decide whether the row is finished."""
        row, job = work.row, work.row.job
        token_ids = row.best_ids.tolist()
        left = min(job.max_new_tokens - len(work.token_ids), work.room - len(work.token_ids))
        count = self._count_answer(token_ids, row.template)
        has_end = count < len(token_ids) and count < left
        work.latest_ids = token_ids[: min(count + has_end, left)]
        work.token_ids += work.latest_ids
        work.entropy += row.entropy.tolist()[: len(work.latest_ids)]
        work.canvases.append(Canvas(row.step, row.converged, row.mean_entropy))
        is_full = len(work.token_ids) >= min(job.max_new_tokens, work.room)
        if not row.canvas_done:
            work.finish_reason = "budget"
        elif has_end:
            work.finish_reason = "stop"
        elif is_full or row.template is not None:
            work.finish_reason = "length"
        elif job.deadline.expired:
            work.finish_reason = "budget"

    def _score(self, hidden: Tensor, token_ids: list[int]) -> list[float]:
        """Log-probabilities of tokens under the hidden states [T, H] before each of them."""
        ids = torch.tensor(token_ids, device=hidden.device)
        scores: list[float] = self._model.score(hidden, ids).tolist()
        return scores

    def _result(self, work: "_Work", reason: FinishReason) -> Draft:
        return Draft(
            token_ids=tuple(work.token_ids),
            text=self._tokenizer.decode(work.token_ids),
            entropy=tuple(work.entropy),
            canvases=tuple(work.canvases),
            finish_reason=reason,
            self_logprobs=tuple(work.self_logprobs),
            timing=DraftTiming(work.prefill_s, work.denoise_s, work.commit_s),
        )


@dataclass(slots=True)
class _Work:
    """A row, and what its finished canvases have come to.

    `room` is how many answer tokens the context has space for; `last_hidden` [1, H] is the state
    from which the next token would be predicted, if the job is scored.
    """

    row: Row
    room: int
    last_hidden: Tensor
    prefill_s: float
    denoise_s: float = 0.0
    commit_s: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    latest_ids: list[int] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    self_logprobs: list[float] = field(default_factory=list)
    canvases: list[Canvas] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def canvas_ended(self) -> bool:
        """Whether the current canvas takes no further step."""
        return self.row.canvas_done or self.row.job.deadline.expired

    @property
    def is_read_again(self) -> bool:
        """Whether the canvas just taken must be read causally: another follows, or it is scored."""
        wants_score = self.row.job.self_score and bool(self.latest_ids)
        return self.finish_reason is None or wants_score
