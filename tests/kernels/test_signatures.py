"""Every operation and its reference take the same arguments."""

import inspect
from importlib import import_module
from pathlib import Path

import pytest

MODULES = sorted(path.stem for path in (Path(__file__).parents[2] / "kernels").glob("*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_an_operation_is_called_as_its_reference(module: str) -> None:
    if module == "compilation":
        pytest.importorskip("triton")
    functions = dict(inspect.getmembers(import_module(f"hybrid.kernels.{module}"), callable))
    for name, operation in functions.items():
        reference = functions.get(f"{name}_torch")  # of some functions on Python numbers too
        if reference and "Tensor" in str(inspect.signature(operation)):
            assert inspect.signature(operation) == inspect.signature(reference), name
