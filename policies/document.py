"""A file's YAML as plain values, and the place in the file that each of them came from.

YAML 1.2 with ruamel's round-trip loader, because it knows the line and column of every key.
"""

from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scanner import RoundTripScanner

from hybrid.errors import PolicyError, Problem, did_you_mean
from hybrid.policies.schema import STEPS, STEPS_ALIAS, Policy
from hybrid.policies.variables import fill_in

EXTENDS = "extends"
MAX_VALUES = 20_000  # once aliases are followed
MAX_BRACKETS = 100  # open at once; the scanner takes seconds for a thousand
_EXPECTED = {  # pydantic's kinds of mistakes, in a policy writer's words
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "one name or a list of names",
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "too_short": "a list of at least one",
    "string_too_short": "text that is not empty",
}
Location = tuple[str | int, ...]


class _Scanner(RoundTripScanner):
    """Refuses deep nesting before it costs anything."""

    def fetch_flow_collection_start(self, token: Any, to_push: str) -> None:
        if len(self.flow_context) >= MAX_BRACKETS:
            message = f"more than {MAX_BRACKETS} brackets are open"
            raise MarkedYAMLError(problem=message, problem_mark=self.reader.get_mark())
        super().fetch_flow_collection_start(token, to_push)


class Document:
    """A parsed file: plain `values` for validation, and the places they came from.

    `schema` is what it will be validated as; `kind` is what messages call it.
    """

    def __init__(
        self,
        name: str,
        text: str,
        environment: Mapping[str, str],
        schema: type[BaseModel] = Policy,
        kind: str = "a policy",
    ) -> None:
        self.name, self._count, self.notes = name, 0, tuple[str, ...]()
        self._schema, self._kind = schema, kind
        self._environment = environment
        self.problems: list[Problem] = []
        yaml = YAML(typ="rt")
        yaml.Scanner = _Scanner
        yaml.composer.warn_double_anchors = False  # the nearest one counts, as YAML says
        try:
            self.root = yaml.load(text)
        except DuplicateKeyError as error:
            mark = error.problem_mark
            key = str(error.problem).partition('"')[2].rpartition('" with value')[0]
            raise self._error(mark.line, mark.column, key, "is given twice") from None
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line, mark.column) if mark else (-1, -1)
            raise self._error(line, column, "", f"not YAML: {error.problem}") from None
        except ReaderError as error:
            before = text[: error.position]
            line, column = before.count("\n"), error.position - before.rfind("\n") - 1
            message = f"not YAML: character {error.character:#04x} is not allowed"
            raise self._error(line, column, "", message) from None
        except Exception as error:  # the parser lets out what its parts raise, KeyError included
            said = next(iter(str(error).splitlines()), type(error).__name__)
            raise self._error(-1, -1, "", f"not YAML: {said}") from None
        if not isinstance(self.root, CommentedMap):
            raise self._error(0, 0, "", f"{kind} is a mapping that starts with version: 1")
        self.values = self._plain(self.root, ())

    def problem(self, details: ErrorDetails) -> Problem:
        """pydantic's complaint in our words, at its line and column."""
        location = tuple(part for part in details["loc"] if part != "[key]")
        is_name = location != details["loc"] or details["type"] == "invalid_key"
        key, kind = str(location[-1]) if location else "", details["type"]
        allowed = _known_keys(location[:-1], self._schema)
        if kind == "extra_forbidden":
            message = f"unknown key{did_you_mean(key, allowed) or f'; known are {_list(allowed)}'}"
            return self.at(location, message, at_key=True)
        if kind == "missing":
            return self.at(location[:-1], f"{key} is missing", at_key=True)
        if kind == "literal_error":
            choices = [str(c).strip("'") for c in details["ctx"]["expected"].split(" or ")]
            choices = [c.strip(" '") for part in choices for c in part.split(",")]
            hint = did_you_mean(str(details["input"]), choices)
            given = _spelled(details["input"])
            return self.at(location, f"{given} is not one of {_list(choices)}{hint}")
        given = _spelled(details["input"])
        if is_name:
            wanted = "a whole number" if kind.startswith("int") else "text"
            return self.at(location, f"a name is {wanted} here, not {given}", at_key=True)
        if kind in _EXPECTED:
            return self.at(location, f"expected {_EXPECTED[kind]}, not {given}")
        message = details["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        return self.at(location, message if kind == "value_error" else f"{message}, not {given}")

    def at(self, location: Location, message: str, at_key: bool = False) -> Problem:
        """A problem at the place of a value, or of its key."""
        node, line, column = self.root, 0, 0
        for index, part in enumerate(location):
            if part == STEPS and isinstance(node, CommentedMap) and part not in node:
                part = STEPS_ALIAS if STEPS_ALIAS in node else part
                location = (*location[:index], part, *location[index + 1 :])
            if isinstance(node, CommentedMap) and part in node:
                is_last = index == len(location) - 1
                is_key = is_last and (at_key or node[part] is None)  # nothing stands after its key
                line, column = node.lc.key(part) if is_key else node.lc.value(part)
            elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
                line, column = node.lc.item(part)
            else:
                if not isinstance(node, CommentedMap | CommentedSeq):
                    location = location[:index]  # a single value that was read as a list of one
                elif EXTENDS in self.root:  # it stands in the policy that this one extends
                    line, column = self.root.lc.value(EXTENDS)
                break
            node = node[part]
        key = ".".join(map(str, location))
        return Problem(self.name, line + 1, column + 1, key, message)

    def _plain(self, node: Any, location: Location) -> Any:
        """The node as plain dicts and lists, with the steps' alias under its own name."""
        self._count += 1
        if self._count > MAX_VALUES:
            raise self._error(-1, -1, "", f"more than {MAX_VALUES} values, aliases followed")
        tag = getattr(node, "tag", None)
        if tag is not None and tag.value is not None:
            self.problems.append(self.at(location, f"{self._kind} has no tags such as {tag.value}"))
        if isinstance(node, CommentedMap):
            return {
                self._key(node, key, location): self._plain(value, (*location, key))
                for key, value in node.items()
            }
        if isinstance(node, CommentedSeq):
            return [self._plain(item, (*location, i)) for i, item in enumerate(node)]
        if isinstance(node, str):
            return self._text(str(node), location)
        for kind in (bool, int, float):
            if isinstance(node, kind):  # ruamel's own scalar types remember their spelling
                return kind(node)
        return node.value if isinstance(node, TaggedScalar) else node

    def _text(self, text: str, location: Location) -> Any:
        """The text with its environment variables filled in."""
        try:
            value, names = fill_in(text, self._environment)
        except ValueError as error:
            self.problems.append(self.at(location, str(error)))
            return text
        if names:
            place = ".".join(map(str, location))
            self.notes += (f"{place}: {value!r}, from {', '.join(names)}",)
        return value

    def _key(self, node: Mapping[Any, Any], key: Any, location: Location) -> Any:
        if key != STEPS_ALIAS or location[-1:] != ("draft",):
            return key
        if STEPS in node:
            message = f"is another name of {STEPS}, which is given too"
            self.problems.append(self.at((*location, key), message, at_key=True))
            return STEPS
        place = ".".join(map(str, (*location, key)))
        self.notes += (f"{place}: read as {STEPS}, the setting's own name",)
        return STEPS

    def _error(self, line: int, column: int, key: str, message: str) -> PolicyError:
        return PolicyError([Problem(self.name, line + 1, column + 1, key, message)])


def _known_keys(location: Location, schema: type[BaseModel]) -> list[str]:
    """The keys that the schema knows at a place."""
    section: type[BaseModel] | None = schema
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


def _spelled(value: Any) -> str:
    """A value as a policy file writes it, cut short."""
    named = {None: "null", True: "true", False: "false"}
    is_named = value is None or isinstance(value, bool)
    return named[value] if is_named else f"{value!r:.60}"


def _list(names: list[str]) -> str:
    return ", ".join(names)
