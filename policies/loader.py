"""From a preset's name or a YAML file to a policy, or to every problem of it with its place.

A policy may extend another: its own sections are laid over the other's, key by key, and its rules
come before the other's.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hybrid.errors import PolicyError, Problem, did_you_mean
from hybrid.files import read_regular_file
from hybrid.policies.consistency import find_contradictions, find_remarks
from hybrid.policies.document import EXTENDS, MAX_PROBLEMS, Document, Location
from hybrid.policies.schema import STEPS, Policy

MAX_BYTES = 200_000  # of one file
MAX_EXTENDED = 4  # files that a file may extend, one through the other


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
    if path.suffix not in (".yaml", ".yml") and not _exists(path):
        raise PolicyError([Problem(given, 0, 0, "", _no_such(given))])
    try:
        text = _read(path)
    except OSError as error:
        raise PolicyError([Problem(given, 0, 0, "", error.strerror or str(error))]) from None
    return parse_policy(text, given, path.parent)


def parse_policy(text: str, name: str, folder: Path = Path()) -> Policy:
    """The policy that a YAML text describes; `name` stands in errors and results.

    `folder` is where a file that it extends is looked for.
    """
    return _parse(text, name, folder, ())


@dataclass(frozen=True, slots=True)
class _Layers:
    """A document's values over those of the policy that it extends."""

    values: dict[str, Any]
    base: Policy | None = None
    inherited_rules: int = 0


def _parse(text: str, name: str, folder: Path, extending: tuple[Path, ...]) -> Policy:
    document = Document(name, text, os.environ)
    layers = _layers(document, folder, extending)
    problems = set(document.problems)
    told = {(problem.line, problem.column) for problem in problems}
    try:
        policy = Policy.model_validate(layers.values)
    except ValidationError as error:
        details = error.errors(include_url=False)[:MAX_PROBLEMS]
        found = {document.problem(detail) for detail in details}
        problems |= {problem for problem in found if (problem.line, problem.column) not in told}
    else:
        contradictions = islice(find_contradictions(policy, layers.inherited_rules), MAX_PROBLEMS)
        problems |= {document.at(*contradiction) for contradiction in contradictions}
    if problems:
        ordered = sorted(problems, key=lambda p: (p.line, p.column, p.key))
        raise PolicyError(ordered[:MAX_PROBLEMS])
    remarks = [document.at(*remark) for remark in find_remarks(policy)]
    notes = (*document.notes, *(f"{remark.key}: {remark.message}" for remark in remarks))
    policy._name, policy._notes, policy._values = name, notes, layers.values
    policy._variables = _variables(document, layers)
    return policy


def _layers(document: Document, folder: Path, extending: tuple[Path, ...]) -> _Layers:
    wanted = document.values.get(EXTENDS)
    if not isinstance(wanted, str):
        return _Layers(document.values)
    own = {key: value for key, value in document.values.items() if key != EXTENDS}
    base = _base(document, wanted, folder, extending)
    rules = own.get("rules", [])
    if not isinstance(rules, list):
        return _Layers(own)
    names = [rule.get("name") for rule in rules if isinstance(rule, dict)]
    inherited = [rule for rule in base._values.get("rules", []) if rule["name"] not in names]
    values = _laid_over(base._values, own, ()) | {"rules": rules + inherited}
    return _Layers(values, base, len(inherited))


def _base(document: Document, wanted: str, folder: Path, extending: tuple[Path, ...]) -> Policy:
    """The policy that the document extends."""

    def refuse(message: str) -> PolicyError:
        return PolicyError([document.at((EXTENDS,), message)])

    if wanted in preset_names():
        return _parse(_read_preset(wanted), wanted, Path(), ())
    path = folder / wanted
    if path.suffix not in (".yaml", ".yml"):
        raise refuse(f"{wanted!r} is {_no_such(wanted)}")
    if len(extending) >= MAX_EXTENDED:
        raise refuse(f"more than {MAX_EXTENDED} files extend each other")
    try:
        resolved = path.resolve()
        if resolved in extending:
            raise refuse(f"{wanted} extends itself, through others")
        text = _read(path)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        problem = error.strerror if isinstance(error, OSError) else "links lead in a circle"
        raise refuse(f"{wanted!r}: {problem}") from None
    return _parse(text, str(path), path.parent, (*extending, resolved))


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


def _variables(document: Document, layers: _Layers) -> dict[Location, str]:
    """The variables of all values that hold, those of the extended policy included."""
    base, found = layers.base, dict[Location, str]()
    before = base._variables if base is not None else {}
    for location, text in before.items():
        moved = location
        if base is not None and location[0] == "rules" and isinstance(location[1], int):
            rule = base._values["rules"][location[1]]
            if rule not in layers.values["rules"]:
                continue
            moved = ("rules", layers.values["rules"].index(rule), *location[2:])
        if base is not None and value_at(layers.values, moved) == value_at(base._values, location):
            found[moved] = text
    return found | document.variables


def value_at(values: Any, location: Location) -> Any:
    """What stands at a location of nested mappings and lists; None where nothing does."""
    for part in location:
        try:
            values = values[part]
        except (LookupError, TypeError):
            return None
    return values


def _no_such(given: str) -> str:
    presets = ", ".join(preset_names())
    return f"neither a preset ({presets}) nor a file{did_you_mean(given, preset_names())}"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _read_preset(name: str) -> str:
    return (files("hybrid") / "policies" / "presets" / f"{name}.yaml").read_text("utf-8")


def _read(path: Path) -> str:
    """The file's text; raises OSError, or PolicyError with the place of what is not UTF-8."""
    try:
        data = read_regular_file(path, MAX_BYTES)
    except ValueError:
        raise FileNotFoundError(2, "No such file or directory") from None  # a zero in its name
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        message = f"not UTF-8 at byte {error.start}"
        raise PolicyError([Problem(str(path), line, column, "", message)]) from None
