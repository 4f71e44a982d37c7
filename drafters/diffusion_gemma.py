"""DiffusionGemma on the native stack: whole requests in, finished drafts out.

Rows of a batch move on their own: one may be committing its second canvas while another takes the
first step of its first. Between steps, every row is asked whether its time is up.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from hybrid.drafters.denoise import DenoisingModel, Row, step
from hybrid.drafters.noise import CounterNoise, Draw, Noise
from hybrid.drafters.template import Template, parse_template
from hybrid.errors import CheckpointError, RequestError
from hybrid.gemma.config import GemmaConfig
from hybrid.gemma.fields import Fields
from hybrid.gemma.model import load_model
from hybrid.gemma.threads import Threads
from hybrid.gemma.tokenizer import ChatTokenizer
from hybrid.protocols import DraftJob
from hybrid.types import Canvas, Denoised, Draft, DraftParams, DraftTiming, FinishReason, Request


class CachingModel(DenoisingModel, Protocol):
    """A denoising model that can make its own caches."""

    @property
    def config(self) -> GemmaConfig: ...

    @property
    def device(self) -> torch.device: ...

    def new_cache(self, batch_size: int, capacity: int) -> Any: ...


class DiffusionGemmaDrafter:
    """A drafter (see `hybrid.protocols.Drafter`) on any model that fits the denoising loop."""

    def __init__(
        self,
        model: CachingModel,
        tokenizer: ChatTokenizer,
        noise: Noise | None = None,
        default_params: DraftParams | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.default_params = default_params or DraftParams()
        self._noise = noise or CounterNoise(model.device)

    @classmethod
    def from_directory(cls, path: str | Path, device: str = "cpu") -> Self:
        """The drafter in a model folder; raises CheckpointError."""
        model = load_model(path, device=device)
        if not model.config.canvas_length:
            raise CheckpointError(str(path), "not a drafter: the model has no canvas")
        tokenizer = ChatTokenizer.from_directory(path)
        return cls(model, tokenizer, default_params=read_params(Path(path)))

    @property
    def canvas_length(self) -> int:
        """See `Drafter.canvas_length`."""
        return self.model.config.canvas_length

    @property
    def max_context(self) -> int:
        """See `Drafter.max_context`."""
        return self.model.config.max_position_embeddings

    def count_prompt_tokens(self, request: Request) -> int:
        """See `Drafter.count_prompt_tokens`."""
        return len(self.tokenizer.encode_conversation(request.conversation))

    def count_blank_tokens(self, request: Request) -> int:
        """See `Drafter.count_blank_tokens`."""
        template = self._template(request)
        return template.blank_tokens if template else 0

    def draft(self, jobs: Sequence[DraftJob]) -> list[Draft]:
        """See `Drafter.draft`; raises RequestError for settings or prompts that cannot work."""
        for job in jobs:
            check_job(job, self.canvas_length, self.model.config.vocab_size)
        templates = [self._job_template(job) for job in jobs]
        prompts = [self._prompt(job.request) for job in jobs]
        rooms = [self._room(len(prompt), job) for prompt, job in zip(prompts, jobs, strict=True)]
        cache = self.model.new_cache(len(jobs), max(rooms))
        with torch.inference_mode(), Threads.of(self.model.config):
            works = self._start(jobs, templates, prompts, rooms, cache)
            active = works
            while active:
                started = time.perf_counter()
                step(self.model, cache, self._noise, [work.row for work in active])
                seconds = time.perf_counter() - started
                for work in active:
                    work.denoise_s += seconds
                    self._report(work.row)
                    work.row.job.deadline.raise_if_cancelled()
                self._end_canvases([work for work in active if work.canvas_ended], cache)
                active = [work for work in active if work.finish_reason is None]
        return [self._result(work) for work in works]

    def _prompt(self, request: Request) -> list[int]:
        prompt = self.tokenizer.encode_conversation(request.conversation)
        most = self.max_context - self.canvas_length
        if len(prompt) > most:
            allowed = f"prompt and one canvas must fit in the context: at most {most} tokens"
            raise RequestError("prompt", f"{len(prompt)} tokens", allowed)
        return prompt

    def _room(self, prompt_tokens: int, job: DraftJob) -> int:
        """Tokens that the prompt and the job's canvases may take together."""
        wanted = -(-job.max_new_tokens // self.canvas_length)
        possible = (self.max_context - prompt_tokens) // self.canvas_length
        return prompt_tokens + min(wanted, possible) * self.canvas_length

    def _template(self, request: Request) -> Template | None:
        if request.infill is None:
            return None
        end_token = min(self.model.config.end_token_ids)
        return parse_template(request.infill, self.tokenizer, self.canvas_length, end_token)

    def _job_template(self, job: DraftJob) -> Template | None:
        template = self._template(job.request)
        if template and template.text_tokens > job.max_new_tokens:
            allowed = f"the infill's text and blanks have {template.text_tokens} tokens"
            raise RequestError("max_new_tokens", job.max_new_tokens, allowed)
        return template

    def _start(
        self,
        jobs: Sequence[DraftJob],
        templates: Sequence[Template | None],
        prompts: Sequence[list[int]],
        rooms: Sequence[int],
        cache: Any,
    ) -> list["_Work"]:
        started = time.perf_counter()
        hidden = self._read(prompts, cache, range(len(jobs)))
        seconds = time.perf_counter() - started
        size = self.canvas_length, self.model.config.hidden_size
        works = []
        for index, job in enumerate(jobs):
            row = Row(
                job=job,
                cache_row=index,
                canvas_ids=self._random_canvas(Draw(job.seed, canvas=0, step=0)),
                soft_embedding=torch.zeros(size, device=self.model.device),
                template=templates[index],
            )
            row.warm_start(job.warm_start)
            room = rooms[index] - len(prompts[index])
            works.append(_Work(row, room, hidden[index][-1:], prefill_s=seconds))
        return works

    def _read(
        self, token_ids: Sequence[Sequence[int]], cache: Any, rows: Sequence[int]
    ) -> list[Tensor]:
        """Read rows of tokens causally into the cache; their hidden states, [T, H] each."""
        lengths = [len(ids) for ids in token_ids]
        padded = [[*ids, *[0] * (max(lengths) - len(ids))] for ids in token_ids]
        ids = torch.tensor(padded, device=self.model.device)
        hidden = self.model.encode(ids, lengths, cache, rows)
        return [states[:length] for states, length in zip(hidden, lengths, strict=True)]

    def _random_canvas(self, draw: Draw) -> Tensor:
        return self._noise.tokens([draw], self.canvas_length, self.model.config.vocab_size)[0]

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
                pieces=tuple(self.tokenizer.pieces(token_ids[:count])),
                accepted=tuple(row.accepted.tolist()[:count]),
                entropy=tuple(row.entropy.tolist()[:count]),
            )
        )

    def _count_answer(self, token_ids: Sequence[int], template: Template | None) -> int:
        """How many tokens come before the end token, the first one after all given text."""
        ends = self.model.config.end_token_ids
        least = template.least_tokens if template else 0
        places = range(least, len(token_ids))
        return next((place for place in places if token_ids[place] in ends), len(token_ids))

    def _end_canvases(self, works: Sequence["_Work"], cache: Any) -> None:
        """Take over finished canvases; commit those that are followed or scored, start the next."""
        for work in works:
            self._take_canvas(work)
        to_read = [work for work in works if work.is_read_again]
        if not to_read:
            return
        started = time.perf_counter()
        hidden = self._read(
            [work.latest_ids for work in to_read], cache, [work.row.cache_row for work in to_read]
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
                work.row.next_canvas(self._random_canvas(draw))

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
        log_p = self.model.logits(hidden).log_softmax(-1)
        scores: list[float] = log_p[range(len(token_ids)), token_ids].tolist()
        return scores

    def _result(self, work: "_Work") -> Draft:
        assert work.finish_reason is not None
        return Draft(
            token_ids=tuple(work.token_ids),
            text=self.tokenizer.decode(work.token_ids),
            entropy=tuple(work.entropy),
            canvases=tuple(work.canvases),
            finish_reason=work.finish_reason,
            self_logprobs=tuple(work.self_logprobs),
            timing=DraftTiming(work.prefill_s, work.denoise_s, work.commit_s),
        )


@dataclass(slots=True)
class _Work:
    """A row, and what its finished canvases have come to.

    `room` is how many answer tokens the context has space for; `last_hidden` [1, H] is the state
    from which the next token would be predicted.
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


def check_job(job: DraftJob, canvas_length: int, vocabulary: int) -> None:
    """Raise RequestError for settings under which the loop means nothing."""
    params = job.params
    rules = (
        ("max_denoising_steps", params.max_denoising_steps, params.max_denoising_steps >= 1,
         "at least 1"),
        ("entropy_bound", params.entropy_bound, params.entropy_bound >= 0, "at least 0 nats"),
        ("t_min", params.t_min, 0 < params.t_min <= params.t_max, "above 0, at most t_max"),
        ("t_max", params.t_max, math.isfinite(params.t_max), "a finite temperature"),
        ("stability_threshold", params.stability_threshold, params.stability_threshold >= 0,
         "at least 0"),
        ("confidence_threshold", params.confidence_threshold, params.confidence_threshold >= 0,
         "at least 0 nats"),
        ("max_new_tokens", job.max_new_tokens, job.max_new_tokens >= 1, "at least 1"),
        ("seed", job.seed, 0 <= job.seed < 2**64, "from 0 to 2**64 - 1"),
        ("warm_start", f"{len(job.warm_start)} tokens", len(job.warm_start) <= canvas_length,
         f"at most {canvas_length} tokens, one canvas"),
        ("warm_start", job.warm_start, all(0 <= token < vocabulary for token in job.warm_start),
         f"token ids below {vocabulary}"),
    )  # fmt: skip
    for name, given, is_right, allowed in rules:
        if not is_right:
            raise RequestError(name, given, allowed)


def read_params(folder: Path) -> DraftParams:
    """The sampler settings in a folder's generation_config.json, or the published ones."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return DraftParams()
    fields = Fields.read(file).values
    sampler = fields.get("sampler_config") or {}
    known = {**fields, **sampler}
    names = DraftParams.__dataclass_fields__
    return DraftParams(**{name: known[name] for name in names if known.get(name) is not None})
