"""More clients than can be answered: `python benchmarks/overload.py`, five minutes.

Closed loop: each client asks, waits for its answer and asks again; one that is refused waits as
long as it was told. A good answer is one that is not empty and in its budget. Goodput should stay
at its best however many clients there are, and those who are let in should keep their budgets.
"""

import itertools
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import cyclopts
from batching import commit
from rich.console import Console
from rich.table import Table

from hybrid import Hybrid
from hybrid.cores import available_cores
from hybrid.embedded.tasks import TASKS, evaluation_set
from hybrid.errors import Overloaded
from hybrid.policies.measurements import hardware, versions
from hybrid.types import Result

CLIENTS = (1, 4, 16, 64, 128, 256, 1000)
BUDGET_S, LOAD_S, WARMING = 0.5, 12.0, 16
_STEP_S = 0.003  # where an answer has no draft that tells

app = cyclopts.App(name="overload", help=__doc__)


@dataclass(slots=True)
class Load:
    """What came of one load of so many clients, from `seconds` of asking."""

    clients: int
    seconds: float = 0.0
    admitted: int = 0
    empty: int = 0
    late: int = 0
    later_than_a_step: int = 0
    refused: int = 0

    @property
    def goodput(self) -> float:
        """Good answers a second."""
        return (self.admitted - self.empty - self.late) / self.seconds

    @property
    def kept(self) -> float:
        """The share of those admitted that were answered within budget plus one step."""
        return 1 - self.later_than_a_step / max(1, self.admitted)


@app.default
def benchmark(
    *,
    clients: tuple[int, ...] = CLIENTS,
    seconds: float = LOAD_S,
    policy: str = "balanced",
    out: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Print goodput by number of clients; JSON goes to OUT, a figure to PLOT."""
    places = {"one process": 0, "workers": available_cores()}
    loads = {
        name: [run(count, seconds, policy, workers) for count in clients]
        for name, workers in places.items()
    }
    show(loads)
    record = {
        "benchmark": "overload",
        "device": hardware(),
        "versions": versions(),
        "commit": commit(),
        "cores": available_cores(),
        "policy": policy,
        "budget_s": BUDGET_S,
        "loads": {
            name: [asdict(load) | {"goodput": load.goodput, "kept": load.kept} for load in row]
            for name, row in loads.items()
        },
    }
    line = json.dumps(record)
    print(line)
    if out:
        out.write_text(line + "\n")
    if plot:
        draw(loads, plot)


def run(clients: int, seconds: float, policy: str, workers: int) -> Load:
    """One load, on models loaded anew with nothing learned before."""
    prompts = [i.prompt for task in TASKS for i in evaluation_set(task, 100)]
    random.Random(0).shuffle(prompts)
    load, lock, asked = Load(clients), threading.Lock(), itertools.cycle(prompts)
    with (
        tempfile.TemporaryDirectory() as cache,
        cache_in(cache),
        Hybrid.from_policy(policy, workers=workers, max_in_flight=10_000) as hybrid,
    ):
        hybrid.generate_batch(prompts[:WARMING])
        started = time.perf_counter()
        until = started + seconds

        def client() -> None:
            while time.perf_counter() < until:
                with lock:
                    prompt = next(asked)
                ask(hybrid, prompt, load, lock, until)

        threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        load.seconds = time.perf_counter() - started
    return load


def ask(hybrid: Hybrid, prompt: str, load: Load, lock: threading.Lock, until: float) -> None:
    """One request, and what came of it."""
    started = time.perf_counter()
    try:
        result = hybrid.generate(prompt, budget=f"{BUDGET_S}s")
    except Overloaded as refusal:
        with lock:
            load.refused += 1
        time.sleep(max(0.0, min(refusal.retry_after_s, until - time.perf_counter())))
        return
    taken_s = time.perf_counter() - started
    with lock:
        load.admitted += 1
        load.empty += not result.text.strip()
        load.late += taken_s > BUDGET_S
        load.later_than_a_step += taken_s > BUDGET_S + step_s(result)


def step_s(result: Result) -> float:
    """Seconds of one of the answer's denoising steps."""
    return result.draft.timing.denoise_s / result.draft.steps if result.draft else _STEP_S


@contextmanager
def cache_in(folder: str) -> Iterator[None]:
    """Inside the block, whatever is learned is kept in this folder."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


def show(loads: Mapping[str, Sequence[Load]]) -> None:
    """A row a load."""
    columns = "models in", "clients", "admitted", "refused", "empty", "kept", "goodput", "of best"
    table = Table(*columns)
    for place, row in loads.items():
        best = max(load.goodput for load in row)
        for load in row:
            numbers = map(str, (load.clients, load.admitted, load.refused, load.empty))
            kept, share = f"{100 * load.kept:.1f} %", f"{100 * load.goodput / best:.0f} %"
            table.add_row(place, *numbers, kept, f"{load.goodput:.1f}/s", share)
    Console().print(table)


def draw(loads: Mapping[str, Sequence[Load]], file: Path) -> None:
    """Goodput against clients, a line for each place."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for place, row in loads.items():
        axes.plot([load.clients for load in row], [load.goodput for load in row], "o-", label=place)
    axes.set(
        xscale="log",
        xlabel="clients, each asking again as soon as it is answered",
        ylabel=f"good answers a second\n(not empty, within {1e3 * BUDGET_S:.0f} ms)",
    )
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    app()
