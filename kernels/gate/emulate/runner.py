"""Cases, each in a process of its own: the compiler aborts on some mistakes."""

import multiprocessing
import os
from typing import Any

from hybrid.kernels.gate.emulate.cases.case import Case
from hybrid.kernels.gate.emulate.verdicts import NOT_COVERED, WRONG, Verdict, judge

_TIME_LIMIT_S = 900


def run(case: Case, architecture: int) -> Verdict:
    """The verdict; where the compiler fails or the time is over, one that says so."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_judge, args=(case, architecture, theirs))
    process.start()
    theirs.close()
    try:
        answer: Any = ours.recv() if ours.poll(_TIME_LIMIT_S) else None
    except EOFError:
        answer = None
    if answer is None and process.is_alive():
        process.kill()
        answer = (NOT_COVERED, f"not done in {_TIME_LIMIT_S} s")
    process.join()
    if answer is None:
        answer = (WRONG, f"the process ended with exit code {process.exitcode}")
    if isinstance(answer, Verdict):
        return answer
    return Verdict(case.name, architecture, answer[0], 0.0, (answer[1],), (), 0)


def _judge(case: Case, architecture: int, answer: Any) -> None:
    import torch

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what the compiler writes before it aborts
    torch.set_num_threads(1)
    try:
        answer.send(judge(case, architecture))
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[-1]
        answer.send((WRONG, f"{type(error).__name__}: {line[:200]}"))
