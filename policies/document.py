"""A file's YAML as plain values, and the place in the file that each of them came from.

Values that came from the environment are never in a message: they are written as the variable.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from hybrid.errors import PolicyError, Problem, did_you_mean
from hybrid.policies.schema import STEPS, STEPS_ALIAS, Policy
from hybrid.policies.variables import fill_in
from hybrid.policies.yaml_reader import (
    MappingNode,
    Node,
    ScalarNode,
    SequenceNode,
    YamlError,
    plain_scalar,
    read_yaml,
)

EXTENDS = "extends"
MAX_VALUES = 20_000  # once aliases are followed
MAX_PROBLEMS = 50  # told of one file
_MERGE, _MESSAGE_CHARACTERS = "<<", 300
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


class Document:
    """A parsed file: plain `values` for validation, and the places they came from.

    `schema` is what it will be validated as; `kind` is what messages call it. `variables` is the
    text of every value that the environment took part in, by location.
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
        self.variables: dict[Location, str] = {}
        self._filled: dict[str, str] = {}  # what the environment gave: the variable, longest first
        self._places: dict[Location, _Place] = {}
        self._open: list[Node] = []
        try:
            tree = read_yaml(text)
        except YamlError as error:
            raise self._error(error.line, error.column, error.key, error.message) from None
        if not isinstance(tree.root, MappingNode):
            raise self._error(0, 0, "", f"{kind} is a mapping that starts with version: 1")
        self._tags = tree.tags
        self.values = self._plain(tree.root, ())

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
            given = self._spelled(details["input"])
            return self.at(location, f"{given} is not one of {_list(choices)}{hint}")
        given = self._spelled(details["input"])
        if is_name:
            wanted = "a whole number" if kind.startswith("int") else "text"
            return self.at(location, f"a name is {wanted} here, not {given}", at_key=True)
        if kind == "too_long":
            most, actual = details["ctx"]["max_length"], details["ctx"]["actual_length"]
            return self.at(location, f"at most {most} are allowed, not {actual}")
        if kind in _EXPECTED:
            return self.at(location, f"expected {_EXPECTED[kind]}, not {given}")
        message = details["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        return self.at(location, message if kind == "value_error" else f"{message}, not {given}")

    def at(self, location: Location, message: str, at_key: bool = False) -> Problem:
        """A problem at the place of a value, or of its key."""
        found = location
        while found not in self._places:
            found = found[:-1]
        place, parent = self._places[found], found != location
        if parent and not place.is_collection:
            location = found  # a single value that was read as a list of one
        elif parent and (EXTENDS,) in self._places:  # it stands in the policy that this one extends
            place = self._places[(EXTENDS,)]
        names = self._written(location)
        # Nothing stands after the key of an empty value.
        line, column = place.key if not parent and (at_key or place.is_empty) else place.value
        message = self._without_values(message)
        if len(message) > _MESSAGE_CHARACTERS:
            message = message[:_MESSAGE_CHARACTERS] + "..."
        return Problem(self.name, line + 1, column + 1, names, message)

    def _written(self, location: Location) -> str:
        """The location's keys as they are written, the steps' other name included."""
        parts = list(location)
        for end, part in enumerate(location):
            place = self._places.get(location[: end + 1])
            if part == STEPS and place is not None and place.is_alias:
                parts[end] = STEPS_ALIAS
        return ".".join(map(str, parts))

    def _without_values(self, message: str) -> str:
        for value, variable in self._filled.items():
            for spelled in {value, repr(value)[1:-1]}:
                whole = rf"(?<!\w){re.escape(spelled)}(?!\w)"
                message = re.sub(whole, lambda _, name=variable: name, message)  # type: ignore[misc]
        return message

    def _plain(self, node: Node, location: Location) -> Any:
        """The node as plain dicts and lists, with the steps' alias under its own name."""
        self._count += 1
        if self._count > MAX_VALUES:
            message = f"more than {MAX_VALUES} values, aliases followed"
            raise self._error(*_start(node), ".".join(map(str, location)), message)
        self._places.setdefault(location, _Place(_start(node), _start(node), node))
        if tag := self._tags.get(id(node)):
            self.problems.append(self.at(location, f"{self._kind} has no tags such as {tag}"))
        if isinstance(node, ScalarNode):
            return self._scalar(node, location)
        if any(node.value is outer.value for outer in self._open):
            self.problems.append(self.at(location, "contains itself"))
            return None
        self._open.append(node)
        try:
            if isinstance(node, SequenceNode):
                return [self._plain(item, (*location, i)) for i, item in enumerate(node.value)]
            assert isinstance(node, MappingNode)
            return self._mapping(node, location)
        finally:
            self._open.pop()

    def _mapping(self, node: MappingNode, location: Location) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        for key_node, value_node, is_merged in self._pairs(node, location):
            key, is_alias = self._key(key_node, location)
            below = (*location, key)
            place = _Place(_start(key_node), _start(value_node), value_node, is_alias)
            if key not in values:
                self._places[below] = place
                if is_alias:
                    note = f"read as {STEPS}, the setting's own name"
                    self.notes += (f"{self._written(below)}: {note}",)
                values[key] = self._plain(value_node, below)
            elif is_alias != self._places[below].is_alias:
                message = f"is another name of {STEPS}, which is given too"
                below, first = (*location, STEPS_ALIAS), self._places[below]
                self._places[below] = place if is_alias else first
                self.problems.append(self.at(below, message, at_key=True))
            elif not is_merged:
                names = self._written(below)
                line, column = place.key
                self.problems.append(
                    Problem(self.name, line + 1, column + 1, names, "is given twice")
                )
        return values

    def _pairs(self, node: MappingNode, location: Location) -> Iterator[tuple[Node, Node, bool]]:
        """Key and value of every pair, and whether it was merged: own pairs come first."""
        merges = []
        for key, value in node.value:
            if isinstance(key, ScalarNode) and key.style is None and key.value == _MERGE:
                merges.append((key, value))
            else:
                yield key, value, False
        for key, value in merges:
            self._places[(*location, _MERGE)] = _Place(_start(key), _start(value), value)
            sources = value.value if isinstance(value, SequenceNode) else [value]
            for source in sources:
                yield from self._merged(source, (*location, _MERGE))

    def _merged(self, source: Node, location: Location) -> Iterator[tuple[Node, Node, bool]]:
        self._count += 1
        if not isinstance(source, MappingNode):
            message = "merges a mapping, or a list of mappings"
        elif any(source.value is outer.value for outer in self._open):
            message = "contains itself"
        else:
            self._open.append(source)
            for key, value, _ in self._pairs(source, location[:-1]):
                self._count += 1
                yield key, value, True
            self._open.pop()
            return
        self.problems.append(self.at(location, message))

    def _key(self, node: Node, location: Location) -> tuple[Any, bool]:
        """A key, and whether it is the steps' other name."""
        if not isinstance(node, ScalarNode):
            raise self._error(*_start(node), ".".join(map(str, location)), "a key is one word")
        try:
            key = plain_scalar(node.value) if node.style is None else node.value
        except ValueError as error:
            key_path = ".".join(map(str, location))
            raise self._error(*_start(node), key_path, str(error)) from None
        is_alias = key == STEPS_ALIAS and location[-1:] == ("draft",)
        return STEPS if is_alias else key, is_alias

    def _scalar(self, node: ScalarNode, location: Location) -> Any:
        """The scalar with its environment variables filled in."""
        try:
            if node.style is None and id(node) not in self._tags:
                value = plain_scalar(node.value)
                if not isinstance(value, str):
                    return value
            value, names = fill_in(node.value, self._environment)
        except ValueError as error:
            self.problems.append(self.at(location, str(error)))
            return node.value
        if names:
            self.variables[location] = node.value
            self._filled |= {self._environment[name]: f"${{{name}}}" for name in names}
            self._filled = dict(sorted(self._filled.items(), key=lambda item: -len(item[0])))
            self.notes += (f"{self._written(location)}: from {', '.join(names)}",)
        return value

    def _spelled(self, value: Any) -> str:
        """A value as a policy file writes it, cut short."""
        named = {None: "null", True: "true", False: "false"}
        if value is None or isinstance(value, bool):
            return named[value]
        return f"{self._without_values(repr(value)):.60}"

    def _error(self, line: int, column: int, key: str, message: str) -> PolicyError:
        message = self._without_values(message)
        return PolicyError([Problem(self.name, line + 1, column + 1, key, message)])


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value and its key start (line and column from 0), and the value's node."""

    key: tuple[int, int]
    value: tuple[int, int]
    node: Node
    is_alias: bool = False

    @property
    def is_collection(self) -> bool:
        return not isinstance(self.node, ScalarNode)

    @property
    def is_empty(self) -> bool:
        node = self.node
        return isinstance(node, ScalarNode) and node.style is None and node.value == ""


def _start(node: Node) -> tuple[int, int]:
    return node.start_mark.line, node.start_mark.column


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


def _list(names: list[str]) -> str:
    return ", ".join(names)
