"""From a preset's name or a YAML file to a policy, or to every problem of it with its place.

A policy may extend another: its own sections are laid over the other's, key by key, and its rules
come before the other's.
"""

import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hybrid.errors import PolicyError, Problem, did_you_mean
from hybrid.policies.consistency import find_contradictions
from hybrid.policies.document import EXTENDS, Document
from hybrid.policies.schema import STEPS, Policy

MAX_BYTES = 1_000_000


def preset_names() -> tuple[str, ...]:
    """The policies that come with the package."""
    folder = files("hybrid") / "policies" / "presets"
    names = (file.name.removesuffix(".yaml") for file in folder.iterdir())
    return tuple(sorted(names))


def load_policy(name_or_path: str | Path) -> Policy:
    """The preset of that name, or the policy in that file; raises PolicyError."""
    given = str(name_or_path)
    if given in preset_names():
        return parse_policy(_read_preset(given), given)
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        raise PolicyError([Problem(given, 0, 0, "", _no_such(given))])
    return parse_policy(_read(path), given, path.parent)


def parse_policy(text: str, name: str, folder: Path = Path()) -> Policy:
    """The policy that a YAML text describes; `name` stands in errors and results.

    `folder` is where a file that it extends is looked for.
    """
    return _parse(text, name, folder, ())


def _parse(text: str, name: str, folder: Path, extending: tuple[Path, ...]) -> Policy:
    document = Document(name, text, os.environ)
    values, inherited = _extended(document, folder, extending)
    problems = set(document.problems)
    told = {(problem.line, problem.column) for problem in problems}
    try:
        policy = Policy.model_validate(values)
    except ValidationError as error:
        found = {document.problem(details) for details in error.errors(include_url=False)}
        problems |= {problem for problem in found if (problem.line, problem.column) not in told}
    else:
        contradictions = find_contradictions(policy, inherited)
        problems |= {document.at(*contradiction) for contradiction in contradictions}
    if problems:
        raise PolicyError(sorted(problems, key=lambda p: (p.line, p.column, p.key)))
    policy._name, policy._notes, policy._values = name, document.notes, values
    return policy


def _extended(document: Document, folder: Path, extending: tuple[Path, ...]) -> tuple[Any, int]:
    """The document's values over those that it extends, and how many rules are inherited."""
    wanted = document.values.get(EXTENDS)
    if not isinstance(wanted, str):
        return document.values, 0
    own = {key: value for key, value in document.values.items() if key != EXTENDS}
    path = folder / wanted
    if wanted in preset_names():
        base = _parse(_read_preset(wanted), wanted, Path(), ())
    elif path.suffix not in (".yaml", ".yml"):
        raise PolicyError([document.at((EXTENDS,), f"{wanted!r} is {_no_such(wanted)}")])
    elif path.resolve() in extending:
        raise PolicyError([document.at((EXTENDS,), f"{wanted} extends itself, through others")])
    else:
        base = _parse(_read(path), str(path), path.parent, (*extending, path.resolve()))
    rules = own.get("rules", [])
    if not isinstance(rules, list):
        return own, 0
    names = [rule.get("name") for rule in rules if isinstance(rule, dict)]
    inherited = [rule for rule in base._values.get("rules", []) if rule["name"] not in names]
    return _laid_over(base._values, own, ()) | {"rules": rules + inherited}, len(inherited)


def _laid_over(base: Mapping[str, Any], own: Mapping[str, Any], place: tuple[str, ...]) -> Any:
    """Mappings key by key; a measured task's table and a choice of steps are one value each."""
    merged = dict(base)
    for key, value in own.items():
        below = merged.get(key)
        is_one_value = key == STEPS or place == ("quality",)
        if isinstance(value, dict) and isinstance(below, dict) and not is_one_value:
            merged[key] = _laid_over(below, value, (*place, key))
        else:
            merged[key] = value
    return merged


def _no_such(given: str) -> str:
    presets = ", ".join(preset_names())
    return f"neither a preset ({presets}) nor a file{did_you_mean(given, preset_names())}"


def _read_preset(name: str) -> str:
    return (files("hybrid") / "policies" / "presets" / f"{name}.yaml").read_text("utf-8")


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # a device or pipe may have no end
    except OSError as error:
        raise PolicyError([Problem(str(path), 0, 0, "", error.strerror or str(error))]) from None
    if len(data) > MAX_BYTES:
        message = f"a policy has at most {MAX_BYTES} bytes"
        raise PolicyError([Problem(str(path), 0, 0, "", message)])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        message = f"not UTF-8 at byte {error.start}"
        raise PolicyError([Problem(str(path), line, column, "", message)]) from None
