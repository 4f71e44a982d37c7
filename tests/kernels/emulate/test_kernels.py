"""Compiled kernels as they ship, and with mistakes that a GPU would not report."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.emulate.chosen import MISTAKES, SHIPPED

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def found() -> Any:
    """What the emulator says of a few kernels on a few architectures."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.emulate.chosen"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_kernels_that_ship_pass(found: Any) -> None:
    assert len(found["shipped"]) == len(SHIPPED)
    for name, (status, instructions, details) in found["shipped"].items():
        assert status == "passed", (name, details)
        assert instructions > 100


def test_mistakes_are_noticed(found: Any) -> None:
    assert len(found["mistakes"]) == len(MISTAKES)
    assert {name for name, status in found["mistakes"].items() if status == "passed"} == set()


def test_pairs_that_assembly_takes_in_register_order_are_wrong(found: Any) -> None:
    by_shifts, by_assembly = found["halves"]
    assert by_shifts == 0 and by_assembly > 0.4


def test_an_instruction_that_is_not_modelled_is_not_covered(found: Any) -> None:
    status, details, settings = found["unknown"]
    assert status == "not covered" and "weak" in details[0]
    assert settings == []
