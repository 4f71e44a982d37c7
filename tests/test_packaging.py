"""What an installed hybrid looks like to the project that uses it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FIND = """
import json, sys
from mypy.modulefinder import FindModuleCache, SearchPaths, get_search_dirs
from mypy.options import Options

paths, site_packages = get_search_dirs(sys.executable)
cache = FindModuleCache(SearchPaths((), (), (*site_packages, *paths), ()), None, Options())
print(json.dumps({name: str(cache.find_module(name)) for name in sys.argv[1:]}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where mypy finds modules that a project in another folder imports."""
    names = ["hybrid", "benchmarks", "drafters", "policies", "refiners", "training"]
    command = [sys.executable, "-P", "-c", FIND, *names]
    elsewhere: Path = tmp_path_factory.mktemp("project")
    answer = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=True)
    places: dict[str, str] = json.loads(answer.stdout)
    return places


def test_type_checkers_find_an_installed_hybrid(found: dict[str, str]) -> None:
    assert found["hybrid"].endswith("hybrid/__init__.pyi")


@pytest.mark.parametrize("folder", ["benchmarks", "drafters", "policies", "refiners", "training"])
def test_an_installed_hybrid_brings_no_other_module(found: dict[str, str], folder: str) -> None:
    assert found[folder] == "ModuleNotFoundReason.NOT_FOUND"
