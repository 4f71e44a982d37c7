"""The compile gate, `python -m hybrid.kernels.gate`: kernels held to their machine code.

Needs no GPU. Compiles what the operations launch at the real model's size, each launch in a process
of its own because the compiler aborts on some mistakes, and fails on what costs a GPU its speed
without changing a result: spilled registers, missing matrix instructions, loads that wait in an
inner loop, or more instructions in any loop around a matrix instruction than were recorded.
"""

import argparse
import json
import multiprocessing
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from hybrid.kernels.compilation import Compiled, compile_launch, identity
from hybrid.kernels.gate_cases import Case, cases
from hybrid.kernels.launch import Launch, recording

ARCHITECTURES = (90, 100, 120)
_SHARED_MEMORY = {90: 227, 100: 227, 120: 99}  # KB that one program may have
_TENSOR_MEMORY = 512  # columns
_TOLERANCE = 1.1  # of recorded instruction counts
_COUNTS = Path(__file__).with_name("gate_counts.json")
_TIME_LIMIT_S = 300


@dataclass(frozen=True, slots=True)
class Job:
    """One launch to compile: of the case's launches of this kernel, the one of this number."""

    case: Case
    launch: Launch
    architecture: int
    number: int = 1

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        return str(self.launch.kernel.__name__)

    @property
    def key(self) -> str:
        """What its instruction count is recorded under."""
        which = self.kernel if self.number == 1 else f"{self.kernel} {self.number}"
        return f"{self.case.name} / {which} / sm_{self.architecture}"


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print, and say by the exit code whether all is well."""
    options = _parser().parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET is set: in the interpreter there is nothing to compile")
    import triton

    jobs = list(list_jobs(options.op, options.arch or ARCHITECTURES))
    known = {} if options.record else _read_counts().get(triton.__version__, {})
    with ThreadPoolExecutor(options.jobs) as pool:
        done = pool.map(lambda job: examine(job, known.get(job.key)), jobs)
        steps = track(done, "compiling", len(jobs), console=Console(stderr=True))
        findings = list(steps)
    if options.json:
        print(json.dumps([_record(finding) for finding in findings]))
    else:
        show(findings, triton.__version__)
    if options.record:
        _write_counts(triton.__version__, findings)
    return int(any(finding.problems for finding in findings))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hybrid.kernels.gate", description="Hold kernels to their machine code."
    )
    parser.add_argument("--op", default="", help="only cases whose name contains this")
    parser.add_argument("--arch", type=int, action="append", choices=ARCHITECTURES)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.add_argument("--record", action="store_true", help="keep the instruction counts")
    return parser


def list_jobs(part: str, architectures: Sequence[int]) -> Iterator[Job]:
    """Every different launch of the cases whose names contain `part`."""
    for architecture in architectures:
        seen = set()
        for case in cases():
            if part not in case.name or architecture not in case.matrix:
                continue
            with recording(architecture) as launches:
                case.call()
            numbers: Counter[str] = Counter()
            for launch in launches:
                numbers[launch.kernel.__name__] += 1
                if (mark := identity(launch)) not in seen:
                    seen.add(mark)
                    yield Job(case, launch, architecture, numbers[launch.kernel.__name__])


def examine(job: Job, recorded: Sequence[int] | None) -> Finding:
    """Compile in a process of its own, and judge."""
    started = time.perf_counter()
    outcome = _in_a_process(job)
    seconds = time.perf_counter() - started
    if isinstance(outcome, str):
        return Finding(job, None, (outcome,), seconds)
    return Finding(job, outcome, tuple(judge(job, outcome, recorded)), seconds)


def judge(job: Job, compiled: Compiled, recorded: Sequence[int] | None) -> Iterator[str]:
    """What is wrong with the machine code; `recorded` are its loops' instructions."""
    if compiled.stack or compiled.spills:
        yield f"spills: {compiled.stack} bytes of stack, {compiled.spills} instructions"
    most = 1024 * _SHARED_MEMORY[job.architecture]
    if compiled.shared_memory > most:
        yield f"{compiled.shared_memory} bytes of shared memory, at most {most}"
    if compiled.tensor_memory > _TENSOR_MEMORY:
        yield f"{compiled.tensor_memory} columns of tensor memory, at most {_TENSOR_MEMORY}"
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


def show(findings: Sequence[Finding], version: str) -> None:
    """The table, and under it what is wrong."""
    table = Table(title=f"Triton {version}", title_justify="left")
    for name in ("operation", "kernel", "arch", "regs", "stack", "spills", "shared", "tensor",
                 "matrix", "per weight", "s"):  # fmt: skip
        table.add_column(name)
    for finding in findings:
        job, compiled = finding.job, finding.compiled
        cells = ["-"] * 6
        if compiled:
            sizes = (compiled.registers, compiled.stack, compiled.spills, compiled.shared_memory)
            cells = [*map(str, (*sizes, compiled.tensor_memory)), compiled.matrix]
        per_weight = finding.instructions_per_weight
        cells += [f"{per_weight:.2f}" if per_weight else "", f"{finding.seconds:.1f}"]
        style = "red" if finding.problems else None
        table.add_row(job.case.name, job.kernel, f"sm_{job.architecture}", *cells, style=style)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for finding in findings:
        for problem in finding.problems:
            console.print(f"{finding.job.key}: {problem}", style="red", highlight=False)
    bad = sum(bool(finding.problems) for finding in findings)
    console.print(f"{len(findings)} launches compiled, {bad} with problems")


def _record(finding: Finding) -> dict[str, Any]:
    return {
        "key": finding.job.key,
        "compiled": asdict(finding.compiled) if finding.compiled else None,
        "instructions_per_weight": finding.instructions_per_weight,
        "problems": finding.problems,
        "seconds": round(finding.seconds, 2),
    }


def _read_counts() -> dict[str, dict[str, list[int]]]:
    """Instruction counts of all loops by version of Triton and key."""
    return dict(json.loads(_COUNTS.read_text())) if _COUNTS.exists() else {}


def _write_counts(version: str, findings: Sequence[Finding]) -> None:
    """Keep the loops' instruction counts under this version of Triton, a line a launch."""
    counts = _read_counts()
    for finding in findings:
        if finding.compiled and finding.compiled.loops:
            sizes = [loop.instructions for loop in finding.compiled.loops]
            counts.setdefault(version, {})[finding.job.key] = sizes
    text = json.dumps(counts, indent=1, sort_keys=True)
    text = re.sub(r"\[[^]]*\]", lambda sizes: str([*map(int, sizes[0][1:-1].split(","))]), text)
    _COUNTS.write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
