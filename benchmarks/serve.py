"""What HTTP costs: `python benchmarks/serve.py`, a minute on two cores.

The same held-out prompts with the same seeds are answered in process and by `hybrid serve`, in
alternating rounds of one run: the median added at one client, and throughput at several clients
over that in process with as many threads. The client of the server is a process of its own and
takes processor time that the in-process rounds do not need.
"""

import asyncio
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cyclopts
import httpx2
from rich.console import Console

from hybrid.api import Hybrid
from hybrid.embedded.tasks import TASKS, Instance, evaluation_set
from hybrid.policies.measurements import hardware, versions

app = cyclopts.App(name="serve", help=__doc__)
_COMMAND = "import sys; from hybrid.cli import main; sys.exit(main())"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Medians at one client (ms), requests a second at several, and their ratios."""

    clients: int
    requests: int
    in_process_ms: float
    http_ms: float
    added_ms: float
    in_process_rate: float
    http_rate: float
    throughput_ratio: float
    equal_answers: float


@app.default
def benchmark(
    *,
    policy: str = "draft_only",
    clients: int = 16,
    requests: int = 300,
    rounds: int = 3,
    workers: int = 0,
    out: Path | None = None,
) -> None:
    """Compare REQUESTS answers in process and over HTTP, ROUNDS times; JSON goes to OUT."""
    each = -(-requests // len(TASKS))
    cases = [case for task in TASKS for case in evaluation_set(task, each)][:requests]
    one_in, one_http, rates_in, rates_http, equal = [], [], [], [], []
    with Hybrid.from_policy(policy, workers=workers) as hybrid, served(policy, workers) as url:
        asyncio.run(over_http(url, cases, clients))  # warm
        in_process(hybrid, cases, clients)
        for _ in range(rounds):
            mine, _ = in_process(hybrid, cases, 1)
            theirs, _ = asyncio.run(over_http(url, cases, 1))
            one_in += [seconds for _, seconds in mine]
            one_http += [seconds for _, seconds in theirs]
            equal += [a == b for (a, _), (b, _) in zip(mine, theirs, strict=True)]
            rates_in.append(len(cases) / in_process(hybrid, cases, clients)[1])
            rates_http.append(len(cases) / asyncio.run(over_http(url, cases, clients))[1])
    in_ms, http_ms = (1e3 * statistics.median(found) for found in (one_in, one_http))
    rate_in, rate_http = statistics.median(rates_in), statistics.median(rates_http)
    outcome = Outcome(
        clients=clients,
        requests=len(cases) * rounds,
        in_process_ms=in_ms,
        http_ms=http_ms,
        added_ms=http_ms - in_ms,
        in_process_rate=rate_in,
        http_rate=rate_http,
        throughput_ratio=rate_http / rate_in,
        equal_answers=statistics.mean(equal),
    )
    console = Console()
    for name, value in asdict(outcome).items():
        console.print(
            f"{name:18} {value:.3g}" if isinstance(value, float) else f"{name:18} {value}"
        )
    if out is not None:
        about = {"policy": policy, "workers": workers, "hardware": hardware()}
        out.write_text(json.dumps({**about, "versions": versions(), **asdict(outcome)}, indent=1))


Answers = tuple[list[tuple[str, float]], float]


def in_process(hybrid: Hybrid, cases: list[Instance], clients: int) -> Answers:
    """Answers with their seconds, and the seconds of all."""

    def ask(number: int) -> tuple[str, float]:
        started = time.perf_counter()
        text = hybrid.generate(cases[number].prompt, seed=number, budget="60s").text
        return text, time.perf_counter() - started

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        found = [*threads.map(ask, range(len(cases)))]
    return found, time.perf_counter() - started


async def over_http(url: str, cases: list[Instance], clients: int) -> Answers:
    """The same through a server."""
    found: list[tuple[str, float]] = [("", 0.0)] * len(cases)
    numbers = iter(range(len(cases)))

    async with httpx2.AsyncClient(base_url=url, timeout=120) as client:

        async def work() -> None:
            for number in numbers:
                body: dict[str, Any] = {
                    "messages": [{"role": "user", "content": cases[number].prompt}],
                    "seed": number,
                    "hybrid": {"budget": "60s"},
                }
                started = time.perf_counter()
                answer = (await client.post("/v1/chat/completions", json=body)).json()
                seconds = time.perf_counter() - started
                found[number] = answer["choices"][0]["message"]["content"], seconds

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        return found, time.perf_counter() - started


@contextmanager
def served(policy: str, workers: int) -> Iterator[str]:
    """The address of a server in a process of its own."""
    command = [sys.executable, "-c", _COMMAND, "serve", policy, "--port", "0"]
    command += ["--workers", str(workers)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        match = re.search(r"answers at (\S+)/v1", process.stdout.readline())
        assert match is not None, "the server did not start"
        yield match[1]
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    app()
