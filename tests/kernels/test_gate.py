"""The compile gate: it passes on what ships, and finds what it is there to find."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hybrid.kernels.gate.cases.case import Case
from hybrid.kernels.gate.compilation import Compiled
from hybrid.kernels.gate.findings import problems
from hybrid.kernels.gate.jobs import Job
from hybrid.kernels.gate.machine_code import Loop
from hybrid.kernels.launch import Launch

ROOT = Path(__file__).parents[2]
INNER, OUTER = Loop(400, 0, encloses=False), Loop(900, 12, encloses=True)
GOOD = Compiled(200, 0, 0, 100_000, 512, "HGMMA.64", (INNER, OUTER))


def compiling(*command: str) -> subprocess.CompletedProcess[str]:
    """A Python process in which Triton compiles."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_every_kernel_that_ships_passes() -> None:
    done = compiling("-m", "hybrid.kernels.gate", "--json")
    findings = json.loads(done.stdout)
    assert {f["key"]: f["problems"] for f in findings if f["problems"]} == {}
    assert len({f["key"] for f in findings}) == len(findings)
    assert {f["key"].rsplit("sm_")[1] for f in findings} == {"90", "100", "120"}
    assert done.returncode == 0


@pytest.mark.slow
def test_mistakes_are_found_in_real_machine_code() -> None:
    done = compiling("-m", "tests.kernels.mistakes")
    found: dict[str, list[str]] = json.loads(done.stdout)
    assert found.pop("fine") == []
    expected = {
        "longer than recorded": "were recorded",
        "spills": "spills",
        "waits": "wait for memory",
        "waits in its second loop": "wait for memory",
        "longer in its second loop": "were recorded",
        "no matrix instruction": "multiplies with nothing",
        "does not compile": "does not compile",
    }
    assert expected.keys() == found.keys()
    for name, words in expected.items():
        assert any(words in problem for problem in found[name]), (name, found[name])


def named(name: str) -> Any:
    return SimpleNamespace(__name__=name)


def job(architecture: int = 90) -> Job:
    case = Case("x", lambda: None, ("multiply",))
    return Job(case, Launch(named("multiply"), (1,), {}, 4, 3), architecture)


@pytest.mark.parametrize(
    ("changes", "architecture", "words"),
    [
        ({"stack": 8}, 90, "spills"),
        ({"spills": 1}, 90, "spills"),
        ({"shared_memory": 228 * 1024}, 90, "shared memory"),
        ({"shared_memory": 100 * 1024, "matrix": "HMMA.16816"}, 120, "shared memory"),
        ({"tensor_memory": 576, "matrix": "UTCHMMA"}, 100, "tensor memory"),
        ({"matrix": ""}, 90, "multiplies with nothing, not HGMMA"),
        ({"matrix": "HMMA.16816"}, 90, "multiplies with HMMA.16816, not HGMMA"),
        ({"loops": (replace(INNER, loads=2), OUTER)}, 90, "2 loads in an inner loop wait"),
        ({"loops": (INNER, replace(OUTER, encloses=False))}, 90, "12 loads in an inner loop wait"),
        ({"loops": (replace(INNER, instructions=441), OUTER)}, 90, "441 instructions in a loop, 4"),
        ({"loops": (INNER, replace(OUTER, instructions=991))}, 90, "991 instructions in a loop, 9"),
        ({"loops": (INNER,)}, 90, "1 loops around matrix instructions, 2 recorded"),
    ],
)
def test_what_is_a_problem(changes: dict[str, Any], architecture: int, words: str) -> None:
    (problem,) = problems(job(architecture), replace(GOOD, **changes), [400, 900])
    assert words in problem


def test_what_is_no_problem() -> None:
    assert list(problems(job(), GOOD, [400, 900])) == []
    assert list(problems(job(), GOOD, [364, 819])) == []
    assert list(problems(job(), GOOD, None)) == []
    waiting = replace(GOOD, loops=(replace(INNER, loads=2), OUTER))
    may_wait = replace(job(), case=replace(job().case, may_wait=True))
    assert list(problems(may_wait, waiting, [400, 900])) == []


def test_only_kernels_that_multiply_must_have_matrix_instructions() -> None:
    other = Job(job().case, Launch(named("merge"), (1,), {}, 4, 3), 90)
    assert list(problems(other, replace(GOOD, matrix="", loops=()), None)) == []


def test_launches_of_one_kernel_in_one_case_are_told_apart() -> None:
    assert job().key == "x / multiply / sm_90"
    assert replace(job(), number=2).key == "x / multiply 2 / sm_90"


def test_the_interpreter_is_no_compiler() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "hybrid.kernels.gate"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "TRITON_INTERPRET" in done.stderr
