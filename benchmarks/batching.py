"""Many clients at once on the embedded pair: `python benchmarks/batching.py`, about a minute.

Throughput: clients that ask one after the other, drafts only; once of the drafter alone, once of
whole requests. Deadlines: 200 requests of all tasks
with budgets from 30 ms to 3 s, arriving from many clients; late is an answer after its budget and
one step more.
"""

import json
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cyclopts
from rich.console import Console
from rich.table import Table

from hybrid import Hybrid
from hybrid.batching import SharedDrafter
from hybrid.deadline import Deadline
from hybrid.drafters.diffusion_gemma import DiffusionGemmaDrafter
from hybrid.embedded import weights_path
from hybrid.embedded.tasks import TASKS, Instance, check, evaluation_set
from hybrid.policies.measurements import hardware, versions
from hybrid.protocols import DraftJob
from hybrid.types import DraftParams, Request, Result

app = cyclopts.App(name="batching", help=__doc__)


@app.default
def benchmark(
    *, requests: int = 200, clients: tuple[int, ...] = (1, 4, 16), out: Path | None = None
) -> None:
    """Print requests a second by number of clients, and how budgets were kept; JSON goes to OUT."""
    instances = [i for task in TASKS for i in evaluation_set(task, requests // len(TASKS) + 1)]
    random.Random(0).shuffle(instances)
    alone, whole = drafting(instances, clients), throughput(instances, clients)
    table = Table("clients", "drafts a second", "of one client", "requests a second", "of one")
    for count in clients:
        cells = (f"{rates[count]:.1f}" for rates in (alone, whole))
        gains = (f"{rates[count] / rates[clients[0]]:.2f}" for rates in (alone, whole))
        drafts, asked = zip(cells, gains, strict=True)
        table.add_row(str(count), *drafts, *asked)
    console = Console()
    console.print(table)
    kept = {count: deadlines(instances[:requests], count) for count in clients}
    table = Table("clients", "answered", "in budget", "and one step", "right", "median of budget")
    for count, row in kept.items():
        shares = (f"{100 * row[name]:.1f} %" for name in ("in_budget", "in_budget_and_step"))
        right, used = f"{100 * row['right']:.0f} %", f"{100 * row['median_use']:.0f} %"
        table.add_row(str(count), f"{row['answered']:.0f}", *shares, right, used)
    console.print(table)
    record: dict[str, Any] = {"benchmark": "batching", "device": hardware()}
    record |= {"versions": versions(), "commit": commit(), "drafting": alone}
    record |= {"throughput": whole, "deadlines": kept}
    line = json.dumps(record)
    print(line)
    if out:
        out.write_text(line + "\n")


def commit() -> str:
    """The checkout's, if it is one."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def drafting(instances: Sequence[Instance], clients: Sequence[int]) -> dict[int, float]:
    """Drafts a second by number of clients of one drafter, without anything around it."""
    drafter = SharedDrafter(DiffusionGemmaDrafter.from_directory(weights_path("drafter")))

    def ask(instance: Instance) -> None:
        params = DraftParams(max_denoising_steps=16)
        drafter.draft([DraftJob(Request(instance.prompt), params, 1, 32, Deadline())])

    ask(instances[0])
    return {count: rate(ask, instances, count) for count in clients}


def throughput(instances: Sequence[Instance], clients: Sequence[int]) -> dict[int, float]:
    """Requests a second by number of clients, under the preset that only drafts."""
    with Hybrid.from_policy("draft_only") as hybrid:

        def ask(instance: Instance) -> None:
            hybrid.generate(instance.prompt, seed=1)

        ask(instances[0])
        return {count: rate(ask, instances, count) for count in clients}


def rate(ask: Callable[[Instance], None], instances: Sequence[Instance], clients: int) -> float:
    """Instances asked for a second, by so many clients."""
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        for _ in threads.map(ask, instances):
            pass
    return len(instances) / (time.perf_counter() - started)


def deadlines(instances: Sequence[Instance], clients: int) -> dict[str, float]:
    """How 200 mixed budgets were kept under the balanced preset."""
    rng = random.Random(1)
    budgets = [0.03 * 100 ** rng.random() for _ in instances]
    with Hybrid.from_policy("balanced") as hybrid:
        hybrid.generate(instances[0].prompt)

        def ask(pair: tuple[Instance, float]) -> tuple[Result, float]:
            started = time.perf_counter()
            result = hybrid.generate(pair[0].prompt, budget=f"{1e3 * pair[1]:.0f}ms")
            return result, time.perf_counter() - started

        with ThreadPoolExecutor(clients) as threads:
            answers = list(threads.map(ask, zip(instances, budgets, strict=True)))
    uses = [seconds / budget for (_, seconds), budget in zip(answers, budgets, strict=True)]
    steps = [
        result.draft.timing.denoise_s / result.draft.steps if result.draft else 0.002
        for result, _ in answers
    ]
    in_time = [
        seconds <= budget + step
        for (_, seconds), budget, step in zip(answers, budgets, steps, strict=True)
    ]
    right = [check(i, result.text) for i, (result, _) in zip(instances, answers, strict=True)]
    return {
        "answered": len(answers),
        "in_budget": statistics.fmean(use <= 1 for use in uses),
        "in_budget_and_step": statistics.fmean(in_time),
        "right": statistics.fmean(right),
        "median_use": statistics.median(uses),
    }


if __name__ == "__main__":
    app()
