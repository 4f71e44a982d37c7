"""How well latency is predicted: `python benchmarks/latency.py`, a minute on two cores.

Held-out prompts of the embedded tasks, one after the other, each under a random budget, with the
plan that the policy chooses; predictions learn from one to the next, as in any use. Reported are
the median relative error of p50, and the share of requests within p95. A request that no plan fits
is cut short by its deadline, so that nobody knows how long it would have taken: those are counted
as cut and left out.
"""

import json
import random
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cyclopts
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hybrid.api import Hybrid
from hybrid.embedded.tasks import TASKS, evaluation_set
from hybrid.policies.measurements import hardware, versions
from hybrid.types import Result

SHORTEST_S, LONGEST_S = 0.01, 1.0

app = cyclopts.App(name="latency", help=__doc__)


@dataclass(frozen=True, slots=True)
class Row:
    """One task: requests compared and cut, median relative error of p50, share within p95, and the
    median milliseconds of both.
    """

    task: str
    requests: int
    cut: int
    error: float
    coverage: float
    predicted_ms: float
    actual_ms: float


@app.default
def benchmark(
    *,
    requests: int = 1000,
    warm_up: int = 500,
    policy: str = "balanced",
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Answer WARM_UP requests that are not counted, then REQUESTS that are; JSON goes to OUT."""
    rng = random.Random(seed)
    most = (requests + warm_up) // len(TASKS) + 100
    prompts = {task: [instance.prompt for instance in evaluation_set(task, most)] for task in TASKS}
    results = []
    with Hybrid.from_policy(policy) as hybrid:
        basis = hybrid.latency_basis
        for _ in track(range(warm_up + requests), "requests"):
            prompt = prompts[rng.choice(list(TASKS))].pop()
            budget_s = SHORTEST_S * (LONGEST_S / SHORTEST_S) ** rng.random()
            results.append(hybrid.generate(prompt, budget=f"{1e6 * budget_s:.0f}us"))
    counted = results[warm_up:]
    rows = [summarise(task, [r for r in counted if r.signals.task == task]) for task in TASKS]
    rows.append(summarise("all", counted))
    show(rows)
    about: dict[str, Any] = {"benchmark": "latency", "policy": policy, "warm_up": warm_up}
    about |= {"costs": basis, "device": hardware(), "versions": versions(), "commit": commit()}
    line = json.dumps({**about, "seed": seed, "rows": [asdict(row) for row in rows]})
    print(line)
    if out:
        out.write_text(line + "\n")


def commit() -> str:
    """The checkout's, if it is one."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def summarise(name: str, results: Sequence[Result]) -> Row:
    """What the predictions of these requests were worth."""
    timings = [result.timing for result in results]
    fitting = [t for t in timings if t.budget_s is None or t.predicted_p95_s <= t.budget_s]
    errors = [abs(t.total_s / t.predicted_p50_s - 1) for t in fitting]
    within = [t.total_s <= t.predicted_p95_s for t in fitting]
    return Row(
        name,
        len(fitting),
        len(timings) - len(fitting),
        round(statistics.median(errors), 3) if errors else 0.0,
        round(statistics.mean(within), 3) if within else 0.0,
        round(1e3 * statistics.median(t.predicted_p50_s for t in fitting), 1) if fitting else 0.0,
        round(1e3 * statistics.median(t.total_s for t in fitting), 1) if fitting else 0.0,
    )


def show(rows: Sequence[Row]) -> None:
    """The table, all tasks together last."""
    table = Table("task", "requests", "cut", "error of p50", "within p95", "predicted ms", "ms")
    for row in rows:
        table.add_row(
            row.task,
            f"{row.requests}",
            f"{row.cut}",
            f"{100 * row.error:.0f} %",
            f"{100 * row.coverage:.1f} %",
            f"{row.predicted_ms:.1f}",
            f"{row.actual_ms:.1f}",
            style="bold" if row.task == "all" else None,
        )
    Console().print(table)


if __name__ == "__main__":
    app()
