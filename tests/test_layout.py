"""The rules about folders and imports that no other tool checks."""

import ast
import pydoc
import re
import subprocess
import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTRACT = {
    "artefacts",
    "types",
    "errors",
    "sampler_settings",
    "files",
    "protocols",
    "deadline",
    "modes",
    "cores",
    "lock",
    "priority",
    "process_end",
    "serialization",
}
MAY_IMPORT = {
    "kernels": {"kernels"},
    "hybrid/gemma": {"gemma", "kernels", *CONTRACT},
    "hybrid/conversation": {"conversation", "gemma", *CONTRACT},
    "hybrid/engine": {"engine", "gemma", "kernels", *CONTRACT},
    "drafters": {"drafters", "engine", "conversation", "gemma", "kernels", *CONTRACT},
    "refiners": {"refiners", "engine", "conversation", "gemma", "kernels", *CONTRACT},
    "policies": {"policies", *CONTRACT},
    "hybrid/embedded": {"embedded", *CONTRACT},
}


def imports(path: Path) -> set[str]:
    """The second part of every `hybrid.x` that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "hybrid":
            found |= {alias.name for alias in node.names} - {"__version__"}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module.split(".")[1]} if node.module.startswith("hybrid.") else set()
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("hybrid.")}
    return found


def python(code: str) -> str:
    """What `code` prints in a fresh interpreter."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_folders_import_only_downwards(folder: str) -> None:
    paths = list((ROOT / folder).rglob("*.py"))
    assert paths
    for path in paths:
        assert imports(path) <= MAY_IMPORT[folder], path


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_the_contract_knows_no_backend(name: str) -> None:
    assert imports(ROOT / "hybrid" / f"{name}.py") <= CONTRACT


def test_no_package_shadows_hugging_face_kernels() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_transformers_still_imports_its_kernels() -> None:
    import_module("transformers.integrations.hub_kernels")


@pytest.mark.parametrize("name", ["drafters", "kernels", "policies", "refiners"])
def test_top_level_folders_are_the_packages(name: str) -> None:
    assert (ROOT / "hybrid" / name).resolve() == ROOT / name


def test_data_files_are_packaged() -> None:
    package = files("hybrid")
    assert (package / "policies" / "presets" / "balanced.yaml").is_file()
    assert (package / "embedded" / "weights" / "drafter" / "model.safetensors").is_file()
    assert (package / "py.typed").is_file()


def test_public_names_load_and_are_shown_by_dir_and_help() -> None:
    import hybrid

    assert {"AsyncHybrid", "Hybrid", "Options", "Result", "load_policy"} <= {*hybrid.__all__}
    assert all(hasattr(hybrid, name) for name in hybrid.__all__)
    assert {*hybrid.__all__} <= {*dir(hybrid)}
    shown = pydoc.plain(pydoc.render_doc(hybrid))
    assert "class Hybrid(" in shown
    assert "load_policy(" in shown


HEAVY = ["torch", "transformers", "triton"]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("hybrid", [*HEAVY, "numpy", "pydantic", "rich"]),
        ("hybrid.cli", HEAVY),
        ("hybrid.policies.planner", HEAVY),
    ],
)
def test_light_modules_import_nothing_heavy(module: str, heavy: list[str]) -> None:
    assert python(f"import sys, {module}; print(sorted({{*{heavy}}} & set(sys.modules)))") == "[]\n"


def test_every_file_says_what_it_is() -> None:
    folders = (*MAY_IMPORT, "hybrid", "training", "benchmarks")
    for path in {path for folder in folders for path in (ROOT / folder).rglob("*.py")}:
        if path.stat().st_size:
            said = ast.get_docstring(ast.parse(path.read_text()))
            assert said and said.partition("\n")[0].strip(), path


def test_the_architecture_names_every_folder_and_files_that_exist() -> None:
    document = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `([\w/]+)/` \|.*\| (.*) \|$", document, re.MULTILINE)
    assert {*MAY_IMPORT, "training", "benchmarks"} <= {folder for folder, _ in rows}
    for folder, first in rows:
        for name in re.findall(r"`([\w./]+)`", first):
            assert (ROOT / folder / name).is_file(), f"{folder}/{name}"
