"""`hybrid compile`: compile the passes of a policy's small models for this machine, and keep them.

From then on they are used wherever such a model is loaded; nothing else changes.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hybrid.artefacts import artefact_of, artefacts_folder, write_artefact
from hybrid.cli.render import printable
from hybrid.cli.terminal import Terminal
from hybrid.deadline import Deadline
from hybrid.errors import CapabilityError
from hybrid.policies.loader import load_policy
from hybrid.protocols import DraftJob
from hybrid.types import DraftParams, Request

if TYPE_CHECKING:
    from hybrid.gemma.model.gemma import GemmaModel

_ROUNDS = 30


def compile_models(policy: str = "balanced", /) -> None:
    """Compile a policy's small models for this machine's CPU, which then answer faster.

    It takes about half a minute a pass, two to three minutes for the embedded pair, and needs a C++
    compiler.

    Parameters
    ----------
    policy
        A preset's name or a policy file: its models on a CPU are compiled.
    """
    chosen = load_policy(policy)

    from hybrid.backends import find_model
    from hybrid.gemma.compiled.compiler import (
        compile_program,
        program_names,
        require_compiler,
        require_small,
    )
    from hybrid.gemma.compiled.model import load_small
    from hybrid.gemma.config import GemmaConfig
    from hybrid.gemma.model.gemma import load_model

    require_compiler()
    choices = {"drafter": chosen.models.drafter, "refiner": chosen.models.refiner}
    folders: dict[str, Path] = {}
    for role in ("drafter", "refiner"):
        choice = choices[role]
        if choice and choice.backend == "native" and choice.device in ("auto", "cpu"):
            require_small(GemmaConfig.from_directory(find_model(choice.model, role, False)))
            folders[role] = find_model(choice.model, role)
    if not folders:
        raise CapabilityError("compiling", policy, "the policy has no native model on a CPU")
    targets = {role: artefact_of(folder) for role, folder in folders.items()}
    models = {role: load_model(folder) for role, folder in folders.items()}
    names = {role: program_names(model) for role, model in models.items()}
    seconds: dict[str, float] = {}
    with _progress() as progress:
        bar = progress.add_task("compiling", total=sum(map(len, names.values())))
        for role, model in models.items():
            passes, started = {}, time.monotonic()
            for name in names[role]:
                progress.update(bar, description=f"compiling {role}: {name}")
                passes[name] = compile_program(model, name)
                progress.advance(bar)
            write_artefact(targets[role], passes)
            seconds[role] = time.monotonic() - started
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="dim")
    for column in ("model", "passes", "compiled in", "before", "now"):
        table.add_column(column, no_wrap=column != "passes")
    for role, folder in folders.items():
        before, after = _times(models[role], load_small(folder))
        table.add_row(
            role,
            ", ".join(names[role]),
            f"{seconds[role]:.0f} s",
            f"{1e3 * before:.2f} ms",
            f"{1e3 * after:.2f} ms, {before / after:.2f} x",
        )
    console = Terminal()
    console.print(table)
    console.print("before and now: a denoising step, or a token that is written")
    console.print(escape(printable(f"kept in {artefacts_folder()}")))
    console.print("what was measured before does not count any more: hybrid calibrate")


def _times(eager: "GemmaModel", compiled: "GemmaModel") -> tuple[float, float]:
    """Seconds of a denoising step, or of reading one token, on both: medians, in turns."""
    import torch

    from hybrid.gemma.threads import Threads

    taken: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode(), Threads.of(eager.config):
        works = [_work(model) for model in (eager, compiled)]
        for _ in range(_ROUNDS):
            for work, times in zip(works, taken, strict=True):
                started = time.perf_counter()
                work()
                times.append(time.perf_counter() - started)
    return statistics.median(taken[0]), statistics.median(taken[1])


def _work(model: "GemmaModel") -> "Callable[[], object]":
    """A denoising step after a short prompt, or reading one token more."""
    import torch

    from hybrid.drafters.denoise_step import fastest_step, take_step
    from hybrid.drafters.noise import CounterNoise
    from hybrid.drafters.sequence import DraftSequence

    length, prompt = model.config.canvas_length, torch.zeros(1, 24, dtype=torch.int64)
    cache = model.new_cache(1, 64 + _ROUNDS)
    model.encode(prompt, [24], cache, [0])
    if not length:
        return partial(model.encode, prompt[:, :1], [1], cache, [0])
    params = DraftParams(max_denoising_steps=2 * _ROUNDS, confidence_threshold=0.0)
    job = DraftJob(Request(""), params, 0, length, Deadline())
    sequence = DraftSequence(job, row=0)
    sequence.start_canvas(torch.zeros(length, dtype=torch.int64))
    step = fastest_step(model, cache, CounterNoise(model.device))
    return partial(take_step, step, [sequence])


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    return Progress(*columns, console=Terminal(stderr=True), transient=True)
