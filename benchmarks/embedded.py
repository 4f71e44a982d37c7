"""Milliseconds a request on the embedded pair, native against transformers on the same weights.

    python benchmarks/embedded.py --requests 20

Both run in one process on one thread, in turns, so that whatever else the machine does slows both:
the ratios are the result, the milliseconds are this machine's. Prints a table and one JSON line.
"""

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import cyclopts
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hybrid.deadline import Deadline
from hybrid.drafters.diffusion_gemma import DiffusionGemmaDrafter
from hybrid.embedded import weights_path
from hybrid.embedded.tasks import TASKS, Instance, evaluation_set
from hybrid.gemma.twin import load_twin
from hybrid.policies.measurements import hardware
from hybrid.protocols import DraftJob
from hybrid.refiners.gemma import GemmaRefiner
from hybrid.types import DraftParams, Request

STEPS = (1, 4, 16)
CANVAS_LENGTH = 32

app = cyclopts.App(name="embedded", help=__doc__)


@dataclass(frozen=True, slots=True)
class Row:
    """Median milliseconds a request of one task; `ratio` is the median of the pairs' ratios."""

    task: str
    model: str
    native_ms: float
    transformers_ms: float
    ratio: float


@app.default
def benchmark(*, requests: int = 20, tasks: tuple[str, ...] = tuple(TASKS)) -> None:
    """Time `requests` held-out prompts of each task."""
    torch.set_num_threads(1)
    drafting, refining = Drafting(), Refining()
    rows = []
    for task in track(tasks, "tasks"):
        instances = evaluation_set(task, requests)
        for steps in STEPS:
            pairs = take_turns(
                instances,
                partial(drafting.native, steps),
                partial(drafting.transformers, steps),
            )
            rows.append(summarise(task, f"draft, {steps} steps", pairs))
        pairs = take_turns(instances, refining.native, refining.transformers)
        rows.append(summarise(task, "AR", pairs))
    show(rows)
    print(json.dumps({**environment(requests), "rows": [asdict(row) for row in rows]}))


class Drafting:
    """All steps are taken on both sides: no canvas stops early."""

    def __init__(self) -> None:
        folder = weights_path("drafter")
        self._drafter = DiffusionGemmaDrafter.from_directory(folder)
        self._twin = load_twin(folder)

    def native(self, steps: int, instance: Instance) -> None:
        params = DraftParams(max_denoising_steps=steps, confidence_threshold=0.0)
        request = Request(instance.prompt)
        self._drafter.draft([DraftJob(request, params, 0, CANVAS_LENGTH, Deadline())])

    def transformers(self, steps: int, instance: Instance) -> None:
        ids = self._drafter.tokenizer.encode_conversation(Request(instance.prompt).conversation)
        with torch.inference_mode():
            output = self._twin.generate(
                torch.tensor([ids]),
                max_new_tokens=CANVAS_LENGTH,
                max_denoising_steps=steps,
                confidence_threshold=1e-9,
            )
        self._drafter.tokenizer.decode(output.sequences[0, len(ids) :].tolist())


class Refining:
    """The refiner alone, from prompt to end token."""

    def __init__(self) -> None:
        folder = weights_path("refiner")
        self._refiner = GemmaRefiner.from_directory(folder)
        self._twin = load_twin(folder)

    def native(self, instance: Instance) -> None:
        session = self._refiner.open(Request(instance.prompt), CANVAS_LENGTH)
        token_ids, _ = session.write((), CANVAS_LENGTH)
        self._refiner.decode(token_ids)

    def transformers(self, instance: Instance) -> None:
        ids = self._refiner.tokenizer.encode_conversation(Request(instance.prompt).conversation)
        with torch.inference_mode():
            output = self._twin.generate(
                torch.tensor([ids]), max_new_tokens=CANVAS_LENGTH, do_sample=False
            )
        self._refiner.decode(output[0, len(ids) :].tolist())


def take_turns(
    instances: list[Instance],
    native: Callable[[Instance], None],
    transformers: Callable[[Instance], None],
) -> list[tuple[float, float]]:
    """Seconds of both for every instance, the first to go alternating; one turn warms up."""
    native(instances[0])
    transformers(instances[0])
    pairs = []
    for number, instance in enumerate(instances):
        if number % 2:
            second = seconds(transformers, instance)
            pairs.append((seconds(native, instance), second))
        else:
            pairs.append((seconds(native, instance), seconds(transformers, instance)))
    return pairs


def seconds(work: Callable[[Instance], None], instance: Instance) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work(instance)
    return time.perf_counter() - started


def summarise(task: str, model: str, pairs: list[tuple[float, float]]) -> Row:
    """Medians, in milliseconds."""
    return Row(
        task,
        model,
        round(1e3 * statistics.median(native for native, _ in pairs), 2),
        round(1e3 * statistics.median(other for _, other in pairs), 2),
        round(statistics.median(other / native for native, other in pairs), 2),
    )


def show(rows: list[Row]) -> None:
    """The table, with the median ratio of each model under it."""
    table = Table("task", "model", "native ms", "transformers ms", "ratio")
    for row in rows:
        cells = (row.native_ms, row.transformers_ms, row.ratio)
        table.add_row(row.task, row.model, *(f"{cell:.1f}" for cell in cells))
    for model in dict.fromkeys(row.model for row in rows):
        ratio = statistics.median(row.ratio for row in rows if row.model == model)
        table.add_row("median", model, "", "", f"{ratio:.1f}", style="bold")
    Console().print(table)


def environment(requests: int) -> dict[str, Any]:
    """What the numbers hold for."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return {
        "benchmark": "embedded",
        "requests": requests,
        "device": hardware(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("hybrid-gemma", "torch", "transformers")},
        "commit": commit or None,
    }


if __name__ == "__main__":
    app()
