"""What compiling a launch shows: the machine code's figures, and what is wrong with them.

Each launch is compiled in a process of its own, because the compiler aborts on some mistakes.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hybrid.kernels.gate.compilation import Compiled, compile_launch
from hybrid.kernels.gate.jobs import Job

_SHARED_MEMORY = {90: 227, 100: 227, 120: 99}  # KB that one program may have
_TENSOR_MEMORY = 512  # columns
_TOLERANCE = 1.1  # of recorded instruction counts
_TIME_LIMIT_S = 300


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of a job: the machine code's figures, or why there is none, and the verdict."""

    job: Job
    compiled: Compiled | None
    problems: tuple[str, ...]
    seconds: float

    @property
    def instructions_per_weight(self) -> float | None:
        """Of the inner loop, for kernels that decode weights in it."""
        if not (self.compiled and self.job.case.weights and self.compiled.loops):
            return None
        threads = 32 * self.job.launch.num_warps
        return self.compiled.loops[0].instructions * threads / self.job.case.weights


def examine(job: Job, recorded: Sequence[int] | None) -> Finding:
    """Compile in a process of its own, and check."""
    started = time.perf_counter()
    outcome = _in_a_process(job)
    seconds = time.perf_counter() - started
    if isinstance(outcome, str):
        return Finding(job, None, (outcome,), seconds)
    return Finding(job, outcome, tuple(problems(job, outcome, recorded)), seconds)


def problems(job: Job, compiled: Compiled, recorded: Sequence[int] | None) -> Iterator[str]:
    """What is wrong with the machine code; `recorded` are its loops' instructions."""
    if compiled.stack or compiled.spills:
        yield f"spills: {compiled.stack} bytes of stack, {compiled.spills} instructions"
    most = 1024 * _SHARED_MEMORY[job.architecture]
    if compiled.shared_memory > most:
        yield f"{compiled.shared_memory} bytes of shared memory, at most {most}"
    if compiled.tensor_memory > _TENSOR_MEMORY:
        yield f"{compiled.tensor_memory} columns of tensor memory, at most {_TENSOR_MEMORY}"
    if compiled.hazards:
        first = compiled.hazards[0]
        yield f"{len(compiled.hazards)} instructions touch a product in flight, first {first}"
    if compiled.assembly:
        yield f"{compiled.assembly} inline assembly operations take elements in register order"
    if job.kernel in job.case.products:
        expected = job.case.matrix[job.architecture]
        if not compiled.matrix.startswith(expected):
            yield f"multiplies with {compiled.matrix or 'nothing'}, not {' or '.join(expected)}"
        if compiled.waiting_loads and not job.case.may_wait:
            yield f"{compiled.waiting_loads} loads in an inner loop wait for memory"
    if recorded is None:
        return
    if len(compiled.loops) != len(recorded):
        yield f"{len(compiled.loops)} loops around matrix instructions, {len(recorded)} recorded"
    for loop, before in zip(compiled.loops, recorded, strict=False):
        if loop.instructions > _TOLERANCE * before:
            yield f"{loop.instructions} instructions in a loop, {before} were recorded"


def _in_a_process(job: Job) -> Compiled | str:
    """The compiled launch, or what stopped it; an abort of the compiler ends only the process."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_compile, args=(job, theirs))
    process.start()
    theirs.close()
    try:
        answer: Any = ours.recv() if ours.poll(_TIME_LIMIT_S) else None
    except EOFError:
        answer = None
    if answer is None and process.is_alive():
        process.kill()
        process.join()
        return f"not compiled in {_TIME_LIMIT_S} s"
    process.join()
    if answer is None:
        return f"the compiler aborted with exit code {process.exitcode}"
    return answer if isinstance(answer, Compiled) else str(answer)


def _compile(job: Job, answer: Any) -> None:
    """The process: what the compiler writes before it aborts is of no use to a reader."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    try:
        answer.send(compile_launch(job.launch, job.architecture))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        answer.send(f"does not compile: {type(error).__name__}: {lines[-1][:200]}")
