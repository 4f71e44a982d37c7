"""The compile gate, `python -m hybrid.kernels.gate`: kernels held to their machine code.

Needs no GPU. Compiles what the operations launch at the real model's size and fails on what costs a
GPU its speed without changing a result: spilled registers, missing matrix instructions, loads that
wait in an inner loop, or more instructions in any loop around a matrix instruction than were
recorded.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.progress import track

from hybrid.kernels.gate.counts import read_counts, write_counts
from hybrid.kernels.gate.findings import examine
from hybrid.kernels.gate.jobs import ARCHITECTURES, list_jobs
from hybrid.kernels.gate.report import as_json, show


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print, and say by the exit code whether all is well."""
    options = _parser().parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET is set: in the interpreter there is nothing to compile")
    import triton

    jobs = list(list_jobs(options.op, options.arch or ARCHITECTURES))
    known = {} if options.record else read_counts().get(triton.__version__, {})
    with ThreadPoolExecutor(options.jobs) as pool:
        done = pool.map(lambda job: examine(job, known.get(job.key)), jobs)
        steps = track(done, "compiling", len(jobs), console=Console(stderr=True))
        findings = list(steps)
    if options.json:
        print(json.dumps([as_json(finding) for finding in findings]))
    else:
        show(findings, triton.__version__)
    if options.record:
        write_counts(triton.__version__, findings)
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


if __name__ == "__main__":
    sys.exit(main())
