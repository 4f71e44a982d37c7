"""Many clients at once on the embedded pair: `python benchmarks/batching.py`, four minutes.

Everything is measured with the models in this process and with a worker process a core.

Throughput: clients that ask one after the other, drafts only. Deadlines: three times 200 requests
of all tasks with budgets from 30 ms to 3 s, arriving from many clients; late is an answer after its
budget and one step more.
"""

import itertools
import json
import random
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cyclopts
from rich.console import Console
from rich.table import Table

from hybrid import Hybrid
from hybrid.cores import available_cores
from hybrid.embedded.tasks import TASKS, Instance, check, evaluation_set
from hybrid.policies.measurements import hardware, versions
from hybrid.types import Result

WARMING = 16  # requests before those that count: the first ones of a process are slow
ROUNDS, ROUND_S = 5, 3.0
LOADS = 3  # of so many requests, for each number of clients

app = cyclopts.App(name="batching", help=__doc__)


@app.default
def benchmark(
    *, requests: int = 200, clients: tuple[int, ...] = (1, 4, 16), out: Path | None = None
) -> None:
    """Print requests a second by number of clients, and how budgets were kept; JSON goes to OUT."""
    instances = [i for task in TASKS for i in evaluation_set(task, requests // len(TASKS) + 1)]
    random.Random(0).shuffle(instances)
    places = {"this process": 0, "workers": available_cores()}
    rates = {name: throughput(instances, clients, workers) for name, workers in places.items()}
    kept = {
        name: {count: deadlines(instances[:requests], count, workers) for count in clients}
        for name, workers in places.items()
    }
    show(rates, kept)
    record: dict[str, Any] = {"benchmark": "batching", "device": hardware()}
    record |= {"versions": versions(), "commit": commit(), "cores": available_cores()}
    record |= {"throughput": rates, "deadlines": kept}
    line = json.dumps(record)
    print(line)
    if out:
        out.write_text(line + "\n")


def show(
    rates: Mapping[str, Mapping[int, float]],
    kept: Mapping[str, Mapping[int, Mapping[str, float]]],
) -> None:
    """Both tables."""
    console = Console()
    table = Table("models in", "clients", "requests a second", "of one client")
    for place, row in rates.items():
        one = next(iter(row.values()))
        for count, rate_ in row.items():
            table.add_row(place, str(count), f"{rate_:.1f}", f"{rate_ / one:.2f}")
    console.print(table)
    table = Table(
        "models in", "clients", "answered", "in budget", "and one step", "right", "median of budget"
    )
    for place, loads in kept.items():
        for count, load in loads.items():
            shares = (f"{100 * load[name]:.1f} %" for name in ("in_budget", "in_budget_and_step"))
            right, used = f"{100 * load['right']:.0f} %", f"{100 * load['median_use']:.0f} %"
            table.add_row(place, str(count), f"{load['answered']:.0f}", *shares, right, used)
    console.print(table)


def commit() -> str:
    """The checkout's, if it is one."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def throughput(
    instances: Sequence[Instance], clients: Sequence[int], workers: int
) -> dict[int, float]:
    """Requests a second by number of clients, under the preset that only drafts.

    The numbers take turns, so that the machine's changes of pace hit all alike.
    """
    answered, seconds = dict.fromkeys(clients, 0), dict.fromkeys(clients, 0.0)
    with Hybrid.from_policy("draft_only", workers=workers) as hybrid:
        prompts = itertools.cycle([instance.prompt for instance in instances])
        hybrid.generate_batch([next(prompts) for _ in range(WARMING)])
        for _ in range(ROUNDS):
            for count in clients:
                started = time.perf_counter()
                answered[count] += ask_on(hybrid, prompts, count, started + ROUND_S)
                seconds[count] += time.perf_counter() - started
    return {count: answered[count] / seconds[count] for count in clients}


def ask_on(hybrid: Hybrid, prompts: Iterator[str], clients: int, until: float) -> int:
    """How many requests are answered while so many clients ask one after the other."""

    def client(number: int) -> int:
        answers = 0
        while time.perf_counter() < until:
            hybrid.generate(next(prompts), seed=1)
            answers += 1
        return answers

    with ThreadPoolExecutor(clients) as threads:
        return sum(threads.map(client, range(clients)))


def deadlines(instances: Sequence[Instance], clients: int, workers: int) -> dict[str, float]:
    """How mixed budgets were kept under the balanced preset, in the mean of several loads."""
    loads = [deadlines_of_one(instances, clients, workers) for _ in range(LOADS)]
    return {name: statistics.fmean(load[name] for load in loads) for name in loads[0]}


def deadlines_of_one(instances: Sequence[Instance], clients: int, workers: int) -> dict[str, float]:
    """How one load of mixed budgets was kept."""
    rng = random.Random(1)
    budgets = [0.03 * 100 ** rng.random() for _ in instances]
    with Hybrid.from_policy("balanced", workers=workers) as hybrid:
        hybrid.generate_batch([instance.prompt for instance in instances[:WARMING]])

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
