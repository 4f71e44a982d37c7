"""Tokens a second of the native stack and of transformers, embedded pair: five minutes on one core.

    python benchmarks/core_cpu.py

Everything is measured twice: "eager", as installed, and "compiled", with the passes that `hybrid
compile` makes. Where they are not in the user's cache yet, they are compiled first and kept there,
which takes two to three minutes more and a C++ compiler.

Both have the same weights, prompts, settings and steps. A request is timed from its text to its
answer's text, so tokenizing and reading the prompt count. Both sides run in one process on one
thread, in turns, so that whatever else the machine does slows both: the ratios are the result.

First the answers are compared: transformers' `generate` gets the native noise in place of torch's,
and must write the same tokens in the same steps, in batches too. Rounding may swap entropies that
are almost equal, so an answer in a hundred may differ. While timed, each side draws its own
numbers, as it does in use. With a fixed number of steps that changes the answer and not the work;
with "until sure", as the model ships, steps are random, alike in the mean, and printed.
"""

import json
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any, Protocol, get_args
from unittest.mock import patch

import cyclopts
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from hybrid.artefacts import artefact_of, read_artefact
from hybrid.cli.compile import compile_models
from hybrid.deadline import Deadline
from hybrid.drafters.diffusion_gemma import DiffusionGemmaDrafter
from hybrid.drafters.noise import CounterNoise, Draw
from hybrid.embedded import PairRole, weights_path
from hybrid.embedded.tasks import TASKS, evaluation_set
from hybrid.gemma.compiled.model import CompiledModel
from hybrid.gemma.model.gemma import load_model
from hybrid.gemma.reference.huggingface import load_hf_reference
from hybrid.policies.measurements import hardware
from hybrid.protocols import DraftJob
from hybrid.refiners.gemma import GemmaRefiner
from hybrid.types import Request

ANSWER_TOKENS = 32  # one canvas
STEPS = (1, 4, 16, None)  # None: until the drafter is sure, in at most the folder's number
KINDS = "eager", "compiled"
NEVER = 1e-300  # nats: transformers wants more than zero, and compares as float32, where it is

app = cyclopts.App(name="core_cpu", help=__doc__)


@dataclass(frozen=True, slots=True)
class Answer:
    """Token ids up to the end token, and the passes that they took."""

    token_ids: tuple[int, ...]
    steps: int


@dataclass(frozen=True, slots=True)
class Row:
    """One workload: medians over its batches, `ratio` that of the pairs' tokens a second."""

    work: str
    kind: str
    batch: int
    native_tokens_per_s: float
    transformers_tokens_per_s: float
    ratio: float
    native_ms: float
    transformers_ms: float
    native_steps: float
    transformers_steps: float
    same_answers: float


class Side(Protocol):
    """Something that answers a batch of prompts."""

    def __call__(self, prompts: Sequence[str], seed: int) -> list[Answer]: ...


@app.default
def benchmark(*, requests: int = 40, batch: int = 8) -> None:
    """Answer REQUESTS held-out prompts of all tasks, one at a time and in batches of BATCH."""
    torch.set_num_threads(1)
    instances = [i for task in TASKS for i in evaluation_set(task, -(-requests // len(TASKS)))]
    random.Random(0).shuffle(instances)
    prompts = [instance.prompt for instance in instances[:requests]]
    compile_missing()
    drafting, writing = Drafting(), Writing()
    rows = []
    for size in (1, batch):
        batches = [prompts[at : at + size] for at in range(0, requests - size + 1, size)]
        for steps in track(STEPS, f"batches of {size}"):
            name = f"draft, {steps}" if steps else "draft, until sure"
            for kind in KINDS:
                sides = drafting.native(steps, kind), drafting.transformers(steps)
                with drafting.native_noise():
                    same = compare(batches, *sides)
                rows.append(measure(name, kind, batches, *sides, same))
    batches = [[prompt] for prompt in prompts]
    for kind in KINDS:
        sides = writing.native(kind), writing.transformers
        rows.append(measure("AR", kind, batches, *sides, compare(batches, *sides)))
    show(rows)
    print(json.dumps({**environment(requests), "rows": [asdict(row) for row in rows]}))


def compile_missing() -> None:
    """Have the embedded pair's passes compiled, if they are not."""
    if not all(read_artefact(artefact_of(weights_path(role))) for role in get_args(PairRole)):
        compile_models()


class Drafting:
    """The drafter on both sides."""

    def __init__(self) -> None:
        from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
            DiffusionGemmaGenerationConfig,
        )

        folder = weights_path("drafter")
        compiled = DiffusionGemmaDrafter.from_directory(folder)
        if not isinstance(compiled.model, CompiledModel):
            raise SystemExit("the drafter's compiled passes cannot be used")
        eager = DiffusionGemmaDrafter(
            load_model(folder), compiled.tokenizer, default_params=compiled.default_params
        )
        self._drafter, self._kinds = compiled, {"eager": eager, "compiled": compiled}
        self._twin = load_hf_reference(folder)
        self._twin.set_experts_implementation("grouped_mm")  # its default, and its fastest here
        self._config = DiffusionGemmaGenerationConfig.from_pretrained(folder)

    def native(self, steps: int | None, kind: str) -> Side:
        """The native drafter; a number of steps are all taken."""
        drafter = self._kinds[kind]
        params = drafter.default_params
        if steps:
            params = replace(params, max_denoising_steps=steps, confidence_threshold=0.0)

        def answer(prompts: Sequence[str], seed: int) -> list[Answer]:
            jobs = [
                DraftJob(Request(prompt), params, seed + row, ANSWER_TOKENS, Deadline())
                for row, prompt in enumerate(prompts)
            ]
            drafts = drafter.draft(jobs)
            return [Answer(draft.token_ids, draft.steps) for draft in drafts]

        return answer

    def transformers(self, steps: int | None) -> Side:
        """transformers' own generation, prompts padded on the left."""
        settings: dict[str, Any] = {"max_new_tokens": ANSWER_TOKENS}
        if steps:
            settings |= {"max_denoising_steps": steps, "confidence_threshold": NEVER}
        tokenizer, pad = self._drafter.tokenizer, self._config.pad_token_id

        def answer(prompts: Sequence[str], seed: int) -> list[Answer]:
            self._seed = seed
            ids = [tokenizer.encode_conversation(Request(text).conversation) for text in prompts]
            longest = max(map(len, ids))
            padded = torch.tensor([[pad] * (longest - len(one)) + one for one in ids])
            is_padded = len(set(map(len, ids))) > 1
            mask = {"attention_mask": (padded != pad).long()} if is_padded else {}
            with torch.inference_mode():
                output = self._twin.generate(
                    padded, generation_config=self._config, **settings, **mask
                )
            answers = []
            pairs = zip(output.sequences, output.tokens_per_forward.tolist(), strict=True)
            for sequence, tokens_per_step in pairs:
                token_ids = [token for token in sequence[longest:].tolist() if token != pad]
                tokenizer.decode(token_ids)
                answers.append(Answer(tuple(token_ids), round(len(token_ids) / tokens_per_step)))
            return answers

        return answer

    @contextmanager
    def native_noise(self) -> Iterator[None]:
        """transformers draws from the native noise: tokens to begin with, then two draws a step."""
        noise, step = CounterNoise(torch.device("cpu")), 0

        def draws(rows: int) -> list[Draw]:
            return [Draw(self._seed + row, 0, step) for row in range(rows)]

        def randint(low: int, high: int, size: tuple[int, int], device: Any) -> Tensor:
            nonlocal step
            token_ids = noise.tokens(draws(size[0]), size[1], high)
            step += 1
            return token_ids

        def multinomial(probabilities: Tensor, num_samples: int) -> Tensor:
            canvases = probabilities.view(-1, ANSWER_TOKENS, probabilities.shape[1])
            everywhere = torch.ones(canvases.shape[:2], dtype=torch.bool)
            return noise.renoise(draws(len(canvases)), canvases, everywhere).view(-1, 1)

        generate = self._twin.generate

        def from_the_start(*arguments: Any, **settings: Any) -> Any:
            nonlocal step
            step = 0
            return generate(*arguments, **settings)

        with (
            patch.object(torch, "randint", randint),
            patch.object(torch, "multinomial", multinomial),
            patch.object(self._twin, "generate", from_the_start),
        ):
            yield


class Writing:
    """The refiner alone on both sides, from prompt to end token, greedily."""

    def __init__(self) -> None:
        folder = weights_path("refiner")
        self._refiner = GemmaRefiner.from_directory(folder)
        if not isinstance(self._refiner.model, CompiledModel):
            raise SystemExit("the refiner's compiled passes cannot be used")
        eager = GemmaRefiner(load_model(folder), self._refiner.tokenizer)
        self._kinds = {"eager": eager, "compiled": self._refiner}
        self._twin = load_hf_reference(folder)

    def native(self, kind: str) -> Side:
        """The native refiner."""
        refiner = self._kinds[kind]

        def answer(prompts: Sequence[str], seed: int) -> list[Answer]:
            session = refiner.open(Request(prompts[0]), ANSWER_TOKENS)
            token_ids, _ = session.write((), ANSWER_TOKENS)
            refiner.decode(token_ids)
            return [Answer(token_ids, len(token_ids))]

        return answer

    def transformers(self, prompts: Sequence[str], seed: int) -> list[Answer]:
        ids = self._refiner.tokenizer.encode_conversation(Request(prompts[0]).conversation)
        with torch.inference_mode():
            output = self._twin.generate(
                torch.tensor([ids]), max_new_tokens=ANSWER_TOKENS, do_sample=False
            )
        token_ids = tuple(output[0, len(ids) :].tolist())
        self._refiner.decode(token_ids)
        return [Answer(token_ids, len(token_ids))]


def compare(batches: Sequence[Sequence[str]], native: Side, other: Side) -> float:
    """The share of answers that are the same; the program ends if too many are not."""
    same = [
        one == another
        for seed, prompts in enumerate(batches)
        for one, another in zip(native(prompts, seed), other(prompts, seed), strict=True)
    ]
    if (share := statistics.fmean(same)) < 0.97:
        raise SystemExit(f"only {sum(same)} of {len(same)} answers are the same")
    return share


def measure(
    work: str, kind: str, batches: Sequence[Sequence[str]], native: Side, other: Side, same: float
) -> Row:
    """Both sides on every batch, the first to go alternating."""
    pairs = []
    for seed, prompts in enumerate(batches):
        sides = (native, other) if seed % 2 else (other, native)
        timed = {side: timing(side, prompts, seed) for side in sides}
        pairs.append((timed[native], timed[other]))
    rates = [(tokens / s, others / o) for (s, tokens, _), (o, others, _) in pairs]
    count = len(batches[0])
    return Row(
        work,
        kind,
        count,
        round(statistics.median(rate for rate, _ in rates), 1),
        round(statistics.median(rate for _, rate in rates), 1),
        round(statistics.median(one / another for one, another in rates), 2),
        round(1e3 * statistics.median(one[0] for one, _ in pairs), 2),
        round(1e3 * statistics.median(another[0] for _, another in pairs), 2),
        round(statistics.fmean(one[2] for one, _ in pairs) / count, 2),
        round(statistics.fmean(another[2] for _, another in pairs) / count, 2),
        round(same, 3),
    )


def timing(side: Side, prompts: Sequence[str], seed: int) -> tuple[float, int, int]:
    """Seconds, tokens and steps of one batch."""
    started = time.perf_counter()
    answers = side(prompts, seed)
    seconds = time.perf_counter() - started
    return seconds, sum(len(a.token_ids) for a in answers), sum(a.steps for a in answers)


def show(rows: Sequence[Row]) -> None:
    """The table."""
    table = Table("work, steps", "passes", "batch", "tokens/s", "theirs", "ratio", "steps", "same")
    for row in rows:
        rates = f"{row.native_tokens_per_s:.0f}", f"{row.transformers_tokens_per_s:.0f}"
        steps = f"{row.native_steps:.1f}, {row.transformers_steps:.1f}"
        same = f"{100 * row.same_answers:.0f} %"
        table.add_row(row.work, row.kind, str(row.batch), *rates, f"{row.ratio:.2f}", steps, same)
    Console().print(table)


def environment(requests: int) -> dict[str, Any]:
    """What the numbers hold for."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return {
        "benchmark": "core_cpu",
        "requests": requests,
        "device": hardware(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("hybrid-gemma", "torch", "transformers")},
        "commit": commit or None,
    }


if __name__ == "__main__":
    app()
