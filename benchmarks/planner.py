"""What a decision costs: `python benchmarks/planner.py`, seconds, no models.

The policy allows 501 plans, more than any real one: four modes of refining at each of 125 caps on
steps, and the refiner alone.
"""

import json
import statistics
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import cyclopts
from rich.console import Console
from rich.table import Table

from hybrid.policies.latency import LatencyModel
from hybrid.policies.loader import parse_policy
from hybrid.policies.measurements import hardware, versions
from hybrid.policies.planner import plan
from hybrid.policies.schema import QualitySection
from hybrid.types import Request, Signals

POLICY = """
version: 1
defaults:
  draft: {max_denoising_steps: {from: 1, to: 125}}
  refine: {mode: [none, score, cascade, verify, generate]}
tasks: {code: {expected_tokens: 16}}
rules:
  - {name: tight, when: {budget: {below: 20ms}}, refine: {mode: none}}
  - {name: long, when: {prompt_tokens: {above: 2000}}, refine: {mode: none}}
"""
COSTS = LatencyModel(
    overhead_s=1e-3,
    prefill_s=1e-3,
    prefill_token_s=1e-5,
    step_s=1e-3,
    commit_s=1e-3,
    read_s=1e-3,
    read_token_s=1e-5,
    token_s=1e-3,
    spread=1.2,
    canvas_length=32,
)
QUALITY = {
    "code": QualitySection(
        draft={1: 0.1, 4: 0.5, 16: 0.8, 48: 0.85},
        refiner=0.95,
        steps_used={1: 1, 4: 4, 16: 10, 48: 12},
        agreement={1: 0.1, 16: 0.7},
    )
}

app = cyclopts.App(name="planner", help=__doc__)


@app.default
def benchmark(*, decisions: int = 5000, out: Path | None = None) -> None:
    """Print median and 99th percentile by budget, in microseconds; write them as JSON to OUT."""
    policy = parse_policy(POLICY, "benchmark")
    signals = Signals(40, "code", "given", 16, 0)
    table, record = Table("budget", "candidates", "median us", "p99 us"), {}
    tables: Mapping[str, Mapping[str, QualitySection]] = {"measured": QUALITY, "prior": {}}
    for name, quality in tables.items():
        for budget in (2.0, 0.05):
            request = Request("x", budget_s=budget)
            times = []
            for _ in range(decisions):
                started = time.perf_counter()
                decision = plan(request, signals, policy, COSTS, quality)
                times.append(1e6 * (time.perf_counter() - started))
            median, p99 = statistics.median(times), statistics.quantiles(times, n=100)[98]
            count = len(decision.rejected) + 1
            table.add_row(f"{budget:g} s, {name}", f"{count}", f"{median:.0f}", f"{p99:.0f}")
            record[f"{budget:g}s {name}"] = {"median_us": round(median), "p99_us": round(p99)}
    Console().print(table)
    about = {"benchmark": "planner", "decisions": decisions, "device": hardware()}
    line = json.dumps({**about, "versions": versions(), "commit": commit(), "budgets": record})
    print(line)
    if out:
        out.write_text(line + "\n")


def commit() -> str:
    """The checkout's, if it is one."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    app()
