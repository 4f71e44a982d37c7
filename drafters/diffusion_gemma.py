"""DiffusionGemma on the native stack: whole requests in, finished drafts out.

Settings, prompts and templates are checked here, before anything runs; the work is the batch's.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from hybrid.cores import available_cores
from hybrid.drafters.batch import Assignment, CachingModel, DraftBatch
from hybrid.drafters.noise import CounterNoise, Noise
from hybrid.drafters.template import Template, parse_template
from hybrid.engine.load import load_fastest
from hybrid.engine.model import EngineModel
from hybrid.errors import CheckpointError, RequestError
from hybrid.gemma.fields import Fields
from hybrid.gemma.threads import SMALL_HIDDEN_SIZE
from hybrid.gemma.tokenizer import ChatTokenizer
from hybrid.protocols import DraftJob
from hybrid.types import Activations, Draft, DraftParams, Request

_SETTINGS: Mapping[str, Callable[[Fields, str], Any]] = {
    "max_denoising_steps": Fields.whole,
    "entropy_bound": Fields.number,
    "t_min": Fields.positive,
    "t_max": Fields.positive,
    "stability_threshold": partial(Fields.whole, least=0),
    "confidence_threshold": Fields.number,
}


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
        on_host = isinstance(model, EngineModel)  # whose canvases only begin with these numbers
        self._noise = noise or CounterNoise(torch.device("cpu") if on_host else model.device)

    @classmethod
    def from_directory(
        cls, path: str | Path, device: str = "auto", activations: Activations = "float"
    ) -> Self:
        """The drafter in a model folder, on a device as `load_fastest` understands it.

        Raises CheckpointError and CapabilityError.
        """
        model = load_fastest(path, device, activations)
        if not model.config.canvas_length:
            raise CheckpointError(str(path), "not a drafter: the model has no canvas")
        tokenizer = ChatTokenizer.from_directory(path)
        return cls(model, tokenizer, default_params=read_params(Path(path)))

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """See `Drafter.vocabulary`."""
        return self.tokenizer.vocabulary

    @property
    def canvas_length(self) -> int:
        """See `Drafter.canvas_length`."""
        return self.model.config.canvas_length

    @property
    def max_context(self) -> int:
        """See `Drafter.max_context`."""
        return self.model.config.max_position_embeddings

    @property
    def batches(self) -> int:
        """See `BatchDrafter.batches`: a small model on a CPU takes one thread a batch."""
        is_small = self.model.config.hidden_size <= SMALL_HIDDEN_SIZE
        return available_cores() if is_small and self.model.device.type == "cpu" else 1

    def count_prompt_tokens(self, request: Request) -> int:
        """See `Drafter.count_prompt_tokens`."""
        return len(self.tokenizer.encode_conversation(request.conversation))

    def count_blank_tokens(self, request: Request) -> int:
        """See `Drafter.count_blank_tokens`."""
        template = self._template(request)
        return template.blank_tokens if template else 0

    def draft(self, jobs: Sequence[DraftJob]) -> list[Draft]:
        """See `Drafter.draft`; raises RequestError for settings or prompts that cannot work."""
        assignments = [self.prepare(job) for job in jobs]
        batch = self.open_batch(len(jobs), max(assignment.room for assignment in assignments))
        waiting = list(range(len(jobs)))
        rows: dict[int, int] = {}
        drafts: dict[int, Draft] = {}
        while waiting or rows:
            now, waiting = waiting[: batch.free], waiting[batch.free :]
            if now:
                numbers = batch.admit([assignments[index] for index in now])
                rows |= zip(numbers, now, strict=True)
            for number, outcome in batch.step().items():
                if isinstance(outcome, Exception):
                    raise outcome
                drafts[rows.pop(number)] = outcome
        return [drafts[index] for index in range(len(jobs))]

    def open_batch(self, slots: int, capacity: int) -> DraftBatch:
        """See `BatchDrafter.open_batch`; a GPU may have room for fewer rows."""
        if isinstance(self.model, EngineModel):
            slots = min(slots, self.model.most_rows(capacity))
        return DraftBatch(self.model, self.tokenizer, self._noise, slots, capacity)

    def prepare(self, job: DraftJob) -> Assignment:
        """See `BatchDrafter.prepare`."""
        check_job(job, self.canvas_length, self.model.config.vocab_size)
        prompt = self._prompt(job.request)
        return Assignment(job, tuple(prompt), self._job_template(job), self._room(len(prompt), job))

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
        if job.clamp:
            end = [min(self.model.config.end_token_ids)] * (self.canvas_length - len(job.clamp))
            return Template((*job.clamp, *end), len(job.clamp))
        template = self._template(job.request)
        if template and template.text_tokens > job.max_new_tokens:
            allowed = f"the infill's text and blanks have {template.text_tokens} tokens"
            raise RequestError("max_new_tokens", job.max_new_tokens, allowed)
        return template


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
        ("clamp", f"{len(job.clamp)} tokens", len(job.clamp) <= canvas_length,
         f"at most {canvas_length} tokens, one canvas"),
        ("warm_start", job.warm_start, all(0 <= token < vocabulary for token in job.warm_start),
         f"token ids below {vocabulary}"),
    )  # fmt: skip
    for name, given, is_right, allowed in rules:
        if not is_right:
            raise RequestError(name, given, allowed)


def read_params(folder: Path) -> DraftParams:
    """The sampler settings in a folder's generation_config.json, or the published ones.

    Raises CheckpointError for any that mean nothing.
    """
    file = folder / "generation_config.json"
    if not file.exists():
        return DraftParams()
    top = Fields.read(file)
    inner = [top.section("sampler_config")] if top.get("sampler_config") is not None else []
    params = DraftParams(
        **{
            name: read(section, name)
            for section in (top, *inner)
            for name, read in _SETTINGS.items()
            if section.get(name) is not None
        }
    )
    if params.t_min > params.t_max:
        raise top.error("t_min", f"{params.t_min:g} is above t_max, {params.t_max:g}")
    return params
