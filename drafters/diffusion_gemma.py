"""DiffusionGemma on the native stack: whole requests in, finished drafts out.

Settings, prompts and templates are checked here, before anything runs; engines do the work. Any
number of threads may ask at once: their sequences share denoising steps.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from hybrid.conversation.tokenizer import ChatTokenizer
from hybrid.cores import available_cores
from hybrid.drafters.eager_runner import EagerRunner
from hybrid.drafters.engine import DraftEngine
from hybrid.drafters.engine_pool import EnginePool
from hybrid.drafters.graph_runner import GraphRunner
from hybrid.drafters.model_runner import CachedModel, ModelRunner
from hybrid.drafters.noise import CounterNoise, Noise
from hybrid.drafters.scheduler import Scheduler
from hybrid.drafters.sequence import DraftSequence
from hybrid.drafters.template import Template, parse_template
from hybrid.engine.load import load_fastest
from hybrid.engine.model import EngineModel
from hybrid.errors import CheckpointError, RequestError
from hybrid.gemma.fields import Fields
from hybrid.gemma.threads import SMALL_HIDDEN_SIZE
from hybrid.priority import PriorityQueue
from hybrid.protocols import DraftJob
from hybrid.types import Activations, Draft, DraftParams, PromptFormat, Request

MAX_BATCH_SIZE = 16
_USUAL_TOTAL_TOKENS = 4096  # of a sequence; an engine is made anew for a longer one

_SETTINGS: Mapping[str, Callable[[Fields, str], Any]] = {
    "max_denoising_steps": Fields.whole,
    "entropy_bound": Fields.number,
    "t_min": Fields.positive,
    "t_max": Fields.positive,
    "stability_threshold": partial(Fields.whole, least=0),
    "confidence_threshold": Fields.number,
}


class DiffusionGemmaDrafter:
    """A drafter (see `hybrid.protocols.Drafter`) on any model that fits the denoising loop.

    At most `max_batch_size` sequences are denoised at the same time, in all engines together.
    """

    def __init__(
        self,
        model: CachedModel,
        tokenizer: ChatTokenizer,
        noise: Noise | None = None,
        default_params: DraftParams | None = None,
        max_batch_size: int = MAX_BATCH_SIZE,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.default_params = default_params or DraftParams()
        on_host = isinstance(model, EngineModel)  # whose canvases only begin with these numbers
        self._noise = noise or CounterNoise(torch.device("cpu") if on_host else model.device)
        self._max_batch_size = -(-max_batch_size // self.num_engines)
        usual = min(_USUAL_TOTAL_TOKENS, self.max_context)
        self._pool = EnginePool(self.new_engine, self.num_engines, usual)

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
    def num_engines(self) -> int:
        """How many engines work side by side: for a small model on a CPU, one a core."""
        is_small = self.model.config.hidden_size <= SMALL_HIDDEN_SIZE
        return available_cores() if is_small and self.model.device.type == "cpu" else 1

    @property
    def concurrency(self) -> int:
        """See `Drafter.concurrency`: on a GPU a row more costs little, on a CPU a core."""
        return self.num_engines if self.model.device.type == "cpu" else self._max_batch_size

    @property
    def num_waiting(self) -> int:
        """How many sequences wait for a place in an engine."""
        return self._pool.num_waiting

    @property
    def prompt_format(self) -> PromptFormat:
        """See `Drafter.prompt_format`."""
        return self.tokenizer.prompt_format

    def count_prompt_tokens(self, request: Request) -> int:
        """See `Drafter.count_prompt_tokens`."""
        return len(self.tokenizer.encode_conversation(request.conversation))

    def count_blank_tokens(self, request: Request) -> int:
        """See `Drafter.count_blank_tokens`."""
        template = self._template(request)
        return template.blank_tokens if template else 0

    def draft(self, jobs: Sequence[DraftJob]) -> list[Draft]:
        """See `Drafter.draft`; raises RequestError for settings or prompts that cannot work."""
        return self._pool.draft([self.new_sequence(job) for job in jobs])

    def new_sequence(self, job: DraftJob) -> DraftSequence:
        """Check a job and encode its prompt; raises RequestError, runs no model."""
        check_job(job, self.canvas_length, self.model.config.vocab_size)
        prompt = tuple(self._prompt(job.request))
        limit = self._max_total_tokens(len(prompt), job)
        return DraftSequence(job, prompt, self._job_template(job), limit)

    def new_engine(
        self, waiting: PriorityQueue[DraftSequence], max_total_tokens: int
    ) -> DraftEngine:
        """An engine with an empty cache, for sequences of up to `max_total_tokens` tokens."""
        model, size = self.model, self._max_batch_size
        runner: ModelRunner
        if isinstance(model, EngineModel):
            runner = GraphRunner(model, self._noise, size, max_total_tokens)
        else:
            runner = EagerRunner(model, self._noise, size, max_total_tokens)
        scheduler = Scheduler(
            waiting,
            runner.max_batch_size,
            runner.max_total_tokens,
            rows_cost_time=model.device.type == "cpu",
            num_engines=self.num_engines,
        )
        return DraftEngine(runner, scheduler, self.tokenizer, model.config)

    def _prompt(self, request: Request) -> list[int]:
        prompt = self.tokenizer.encode_conversation(request.conversation)
        most = self.max_context - self.canvas_length
        if len(prompt) > most:
            allowed = f"prompt and one canvas must fit in the context: at most {most} tokens"
            raise RequestError("prompt", f"{len(prompt)} tokens", allowed)
        return prompt

    def _max_total_tokens(self, prompt_tokens: int, job: DraftJob) -> int:
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
        if job.fixed_token_ids:
            fixed = job.fixed_token_ids
            end = [min(self.model.config.end_token_ids)] * (self.canvas_length - len(fixed))
            return Template((*fixed, *end), len(fixed))
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
        ("fixed_token_ids", f"{len(job.fixed_token_ids)} tokens",
         len(job.fixed_token_ids) <= canvas_length,
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
