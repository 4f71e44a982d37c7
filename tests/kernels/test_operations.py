"""Operations that launch kernels have a reference, and every operation is in the README."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
NAMES = sorted(path.stem for path in KERNELS.glob("*.py"))
ROWS = set(re.findall(r"^\| `(\w+)` \|", (KERNELS / "README.md").read_text(), re.MULTILINE))


def operations(name: str) -> set[str]:
    """Public functions of a module that may launch kernels, or take tensors as a reference does."""
    module = import_module(f"hybrid.kernels.{name}")
    found = set()
    for function_name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ != module.__name__ or function_name.startswith("_"):
            continue
        launches = "uses_triton" in function.__code__.co_names
        has_reference = hasattr(module, f"{function_name}_torch")
        if launches or (has_reference and "Tensor" in str(inspect.signature(function))):
            found.add(function_name)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_what_launches_kernels_has_a_reference(name: str) -> None:
    module = import_module(f"hybrid.kernels.{name}")
    for operation in operations(name):
        assert hasattr(module, f"{operation}_torch"), operation


def test_the_readme_has_a_row_for_every_operation() -> None:
    assert set().union(*map(operations, NAMES)) == ROWS
