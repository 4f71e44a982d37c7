"""The emulator, `python -m hybrid.kernels.gate.emulate`: kernels held to what their PTX computes.

Needs no GPU. Runs every operation with small sizes, compiled with the settings that ship, and fails
on a wrong result and on anything that PTX leaves undefined. What it does not know how to run it
says, and does not count as passed.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.progress import track

from hybrid.kernels.gate.emulate.cases.case import ARCHITECTURES
from hybrid.kernels.gate.emulate.report import as_json, coverage, show
from hybrid.kernels.gate.emulate.runner import run
from hybrid.kernels.gate.emulate.verdicts import PASSED, all_cases
from hybrid.kernels.gate.jobs import ARCHITECTURES as COMPILED
from hybrid.kernels.gate.jobs import list_jobs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and say by the exit code whether all has passed."""
    options = _parser().parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET is set: in the interpreter there is no PTX to run")
    architectures = options.arch or ARCHITECTURES
    work = [
        (case, architecture)
        for architecture in architectures
        for case in all_cases()
        if options.op in case.name and architecture in case.architectures
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        done = pool.map(lambda one: run(*one), work)
        verdicts = list(track(done, "emulating", len(work), console=Console(stderr=True)))
    jobs = list_jobs(options.op, [a for a in architectures if a in COMPILED])
    rows = coverage(list(jobs), verdicts)
    if options.json:
        print(json.dumps(as_json(verdicts, rows)))
    else:
        show(verdicts, rows)
    return int(any(verdict.status != PASSED for verdict in verdicts))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hybrid.kernels.gate.emulate",
        description="Run compiled kernels on the CPU and compare them with their references.",
    )
    parser.add_argument("--op", default="", help="only cases whose name contains this")
    parser.add_argument("--arch", type=int, action="append", choices=ARCHITECTURES)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())
