"""From a preset's name or a YAML file to a policy, or to every problem of it with its place.

YAML 1.2 with ruamel's round-trip loader, because it knows the line and column of every key.
"""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from hybrid.errors import PolicyError, Problem, did_you_mean
from hybrid.policies.consistency import find_contradictions
from hybrid.policies.schema import Policy

MAX_BYTES = 1_000_000
MAX_VALUES = 20_000  # once aliases are followed
_ALIAS, _KNOB = "num_diffusion_steps", "max_denoising_steps"
Location = tuple[str | int, ...]


def preset_names() -> tuple[str, ...]:
    """The policies that come with the package."""
    folder = files("hybrid") / "policies" / "presets"
    names = (file.name.removesuffix(".yaml") for file in folder.iterdir())
    return tuple(sorted(names))


def load_policy(name_or_path: str | Path) -> Policy:
    """The preset of that name, or the policy in that file; raises PolicyError."""
    given = str(name_or_path)
    if given in preset_names():
        text = (files("hybrid") / "policies" / "presets" / f"{given}.yaml").read_text("utf-8")
        return parse_policy(text, given)
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        presets = ", ".join(preset_names())
        hint = did_you_mean(given, preset_names())
        message = f"neither a preset ({presets}) nor a file{hint}"
        raise PolicyError([Problem(given, 0, 0, "", message)])
    return parse_policy(_read(path), given)


def parse_policy(text: str, name: str) -> Policy:
    """The policy that a YAML text describes; `name` stands in errors and results."""
    document = _Document(name, text)
    try:
        policy = Policy.model_validate(document.values)
    except ValidationError as error:
        problems = {document.problem(details) for details in error.errors(include_url=False)}
        raise PolicyError(sorted(problems, key=lambda p: (p.line, p.column, p.key))) from None
    contradictions = find_contradictions(policy)
    if contradictions:
        raise PolicyError(document.at(location, message) for location, message in contradictions)
    policy._name, policy._notes = name, document.notes
    return policy


def _read(path: Path) -> str:
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            message = f"{path.stat().st_size} bytes; a policy has at most {MAX_BYTES}"
            raise PolicyError([Problem(str(path), 0, 0, "", message)])
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise PolicyError([Problem(str(path), 0, 0, "", error.strerror or str(error))]) from None
    except UnicodeDecodeError as error:
        message = f"not UTF-8 at byte {error.start}"
        raise PolicyError([Problem(str(path), 0, 0, "", message)]) from None


class _Document:
    """A parsed file: plain `values` for validation, and the places they came from."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self._count, self.notes = name, 0, tuple[str, ...]()
        yaml = YAML(typ="rt")
        try:
            self.root = yaml.load(text)
        except DuplicateKeyError as error:
            mark, key = error.problem_mark, str(error.problem).split('"')[1]
            raise self._error(mark.line, mark.column, key, "is given twice") from None
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line, mark.column) if mark else (-1, -1)
            raise self._error(line, column, "", f"not YAML: {error.problem}") from None
        except (YAMLError, ValueError, RecursionError) as error:
            raise self._error(-1, -1, "", f"not YAML: {str(error).splitlines()[0]}") from None
        if not isinstance(self.root, CommentedMap):
            raise self._error(0, 0, "", "a policy is a mapping that starts with version: 1")
        self.values = self._plain(self.root, ())

    def problem(self, details: ErrorDetails) -> Problem:
        """pydantic's complaint in our words, at its line and column."""
        location = tuple(part for part in details["loc"] if part != "[key]")
        key, kind = str(location[-1]) if location else "", details["type"]
        allowed = _known_keys(location[:-1])
        if kind == "extra_forbidden":
            message = f"unknown key{did_you_mean(key, allowed) or f'; known are {_list(allowed)}'}"
            return self.at(location, message, at_key=True)
        if kind == "missing":
            return self.at(location[:-1], f"{key} is missing", at_key=True)
        if kind == "literal_error":
            choices = [str(c).strip("'") for c in details["ctx"]["expected"].split(" or ")]
            choices = [c.strip(" '") for part in choices for c in part.split(",")]
            given = str(details["input"])
            hint = did_you_mean(given, choices)
            return self.at(location, f"{given!r} is not one of {_list(choices)}{hint}")
        message = details["msg"].removeprefix("Value error, ")
        if kind != "value_error":
            message = f"{message[0].lower()}{message[1:]}, not {details['input']!r:.60}"
        return self.at(location, message)

    def at(self, location: Location, message: str, at_key: bool = False) -> Problem:
        """A problem at the place of a value, or of its key."""
        node, line, column = self.root, 0, 0
        for index, part in enumerate(location):
            if isinstance(node, CommentedMap) and part in node:
                is_key = at_key and index == len(location) - 1
                line, column = node.lc.key(part) if is_key else node.lc.value(part)
            elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
                line, column = node.lc.item(part)
            else:
                if not isinstance(node, CommentedMap | CommentedSeq):
                    location = location[:index]  # a single value that was read as a list of one
                break
            node = node[part]
        key = ".".join(map(str, location))
        return Problem(self.name, line + 1, column + 1, key, message)

    def _plain(self, node: Any, location: Location) -> Any:
        """The node as plain dicts and lists, with the steps' alias under its own name."""
        self._count += 1
        if self._count > MAX_VALUES:
            raise self._error(-1, -1, "", f"more than {MAX_VALUES} values, aliases followed")
        if isinstance(node, CommentedMap):
            return {
                self._key(node, key, location): self._plain(value, (*location, key))
                for key, value in node.items()
            }
        if isinstance(node, CommentedSeq):
            return [self._plain(item, (*location, i)) for i, item in enumerate(node)]
        for kind in (bool, int, float, str):
            if isinstance(node, kind):  # ruamel's own scalar types remember their spelling
                return kind(node)
        return node

    def _key(self, node: Mapping[Any, Any], key: Any, location: Location) -> Any:
        if key != _ALIAS:
            return key
        if _KNOB in node:
            message = f"is another name of {_KNOB}, which is given too"
            raise PolicyError([self.at((*location, key), message, at_key=True)])
        place = ".".join(map(str, (*location, key)))
        self.notes += (f"{place}: read as {_KNOB}, the setting's own name",)
        return _KNOB

    def _error(self, line: int, column: int, key: str, message: str) -> PolicyError:
        return PolicyError([Problem(self.name, line + 1, column + 1, key, message)])


def _known_keys(location: Location) -> list[str]:
    """The keys that the schema knows at a place."""
    section: type[BaseModel] | None = Policy
    skip_next = False
    for part in location:
        if skip_next:  # a list's index or a mapping's own name: still the same section
            skip_next = False
            continue
        field = section.model_fields.get(str(part)) if section else None
        section = _section_in(field.annotation) if field else None
        skip_next = field is not None and get_origin(field.annotation) in (dict, list)
    return list(section.model_fields) if section else []


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation such as `dict[str, TaskSection]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_in(argument) for argument in get_args(annotation))
    return next((section for section in found if section is not None), None)


def _list(names: list[str]) -> str:
    return ", ".join(names)
