"""Many clients at once on the embedded pair: `python benchmarks/batching.py`, about a minute.

Throughput: clients that ask one after the other, drafts only. Deadlines: 200 requests of all tasks
with budgets from 30 ms to 3 s, arriving from many clients; late is an answer after its budget and
one step more.
"""

import json
import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import cyclopts
from rich.console import Console
from rich.table import Table

from hybrid import Hybrid
from hybrid.embedded.tasks import TASKS, Instance, check, evaluation_set
from hybrid.types import Result

app = cyclopts.App(name="batching", help=__doc__)


@app.default
def benchmark(*, requests: int = 200, clients: tuple[int, ...] = (1, 4, 16)) -> None:
    """Print requests a second by number of clients, and how the budgets were kept."""
    instances = [i for task in TASKS for i in evaluation_set(task, requests // len(TASKS) + 1)]
    random.Random(0).shuffle(instances)
    rates = throughput(instances[:requests], clients)
    table = Table("clients", "requests a second", "of one client")
    for count, rate in rates.items():
        table.add_row(str(count), f"{rate:.1f}", f"{rate / rates[clients[0]]:.2f}")
    console = Console()
    console.print(table)
    kept = {count: deadlines(instances[:requests], count) for count in clients}
    table = Table("clients", "answered", "in budget", "and one step", "right", "median of budget")
    for count, row in kept.items():
        shares = (f"{100 * row[name]:.1f} %" for name in ("in_budget", "in_budget_and_step"))
        right, used = f"{100 * row['right']:.0f} %", f"{100 * row['median_use']:.0f} %"
        table.add_row(str(count), f"{row['answered']:.0f}", *shares, right, used)
    console.print(table)
    print(json.dumps({"benchmark": "batching", "throughput": rates, "deadlines": kept}))


def throughput(instances: Sequence[Instance], clients: Sequence[int]) -> dict[int, float]:
    """Requests a second by number of clients, under the preset that only drafts."""
    with Hybrid.from_policy("draft_only") as hybrid:
        hybrid.generate(instances[0].prompt)
        rates = {}
        for count in clients:
            started = time.perf_counter()
            with ThreadPoolExecutor(count) as threads:
                for _ in threads.map(lambda i: hybrid.generate(i.prompt, seed=1), instances):
                    pass
            rates[count] = len(instances) / (time.perf_counter() - started)
    return rates


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
