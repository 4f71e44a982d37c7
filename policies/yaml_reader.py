"""YAML 1.2 as nodes with their places, in bounded time and memory.

ruamel's composer, without its constructors: they build objects for tags, follow merge keys in
circles, and take 0.1 ms a value. Every limit here is on what a file may cost, not on what policies
need: the largest preset has 700 tokens.
"""

import copy
import re
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scanner import Scanner

MAX_TOKENS = 20_000  # keys, values, brackets, list items; one costs about 25 us
MAX_DEPTH = 50
MAX_NUMBER_CHARACTERS = 40
Scalar = str | int | float | bool | None

_WORDS: dict[str, Scalar] = {"": None, "~": None}
_WORDS |= {word: None for word in ("null", "Null", "NULL")}
_WORDS |= {word: True for word in ("true", "True", "TRUE")}
_WORDS |= {word: False for word in ("false", "False", "FALSE")}


def _word_as_float(text: str) -> float:
    return float(text.replace(".", ""))


_NUMBERS = (
    (re.compile(r"[-+]?[0-9][0-9_]*"), lambda text: int(text.replace("_", ""))),
    (re.compile(r"0o[0-7]+"), lambda text: int(text[2:], 8)),
    (re.compile(r"0x[0-9a-fA-F]+"), lambda text: int(text[2:], 16)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (
        re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
        lambda text: float(text.replace(".", "")),
    ),
)


class YamlError(Exception):
    """Text that is not YAML, or more than is read; line and column count from 0."""

    def __init__(self, message: str, line: int, column: int, key: str = "") -> None:
        super().__init__(message)
        self.message, self.line, self.column, self.key = message, line, column, key


@dataclass(frozen=True, slots=True)
class Tree:
    """A document's root node, and the tags that are written in it by their node's id."""

    root: Node | None
    tags: dict[int, str]


def read_yaml(text: str) -> Tree:
    """The nodes of a text with one document; raises YamlError."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Scanner, yaml.Composer, yaml.max_depth = _Scanner, _Composer, MAX_DEPTH
    yaml.composer.warn_double_anchors = False  # the nearest one counts, as YAML says
    composer = yaml.composer
    try:
        root = yaml.compose(text)
    except MaxDepthExceededError as error:
        message = f"nested deeper than {MAX_DEPTH} levels"
        raise YamlError(message, *_place(error), composer.key()) from None
    except MarkedYAMLError as error:
        raise YamlError(f"not YAML: {error.problem}", *_place(error), composer.key()) from None
    except ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n"), error.position - before.rfind("\n") - 1
        message = f"not YAML: character {error.character:#04x} is not allowed"
        raise YamlError(message, line, column) from None
    except Exception as error:  # the parser lets out what its parts raise, KeyError included
        mark = yaml.reader.get_mark()
        problem = next(iter(str(error).splitlines()), type(error).__name__)
        raise YamlError(f"not YAML: {problem}", mark.line, mark.column, composer.key()) from None
    return Tree(root, composer.tags)


def plain_scalar(text: str) -> Scalar:
    """An unquoted scalar under YAML's core schema, with `_` between digits.

    Raises ValueError for a number of more than `MAX_NUMBER_CHARACTERS`.
    """
    if text in _WORDS:
        return _WORDS[text]
    for shape, number in _NUMBERS:
        if shape.fullmatch(text):
            if len(text) > MAX_NUMBER_CHARACTERS:
                allowed = f"a number has at most {MAX_NUMBER_CHARACTERS} characters"
                raise ValueError(f"{allowed}, not {len(text)}")
            return number(text)
    return text


class _Scanner(Scanner):
    """Refuses more tokens than are read, and deep nesting before it costs anything."""

    _fetched = 0

    def fetch_more_tokens(self) -> Any:
        self._fetched += 1
        if self._fetched > MAX_TOKENS:
            message = f"more than {MAX_TOKENS} keys, values and brackets"
            raise MarkedYAMLError(problem=message, problem_mark=self.reader.get_mark())
        return super().fetch_more_tokens()

    def fetch_flow_collection_start(self, token: Any, to_push: str) -> None:
        if len(self.flow_context) > MAX_DEPTH:  # the scanner takes seconds for a thousand
            mark = self.reader.get_mark()
            raise MarkedYAMLError(problem=f"more than {MAX_DEPTH} brackets", problem_mark=mark)
        super().fetch_flow_collection_start(token, to_push)


class _Composer(Composer):
    """Remembers which tags are written, and which keys lead to where it is."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self.tags: dict[int, str] = {}
        self._path: list[tuple[Any, Any]] = []

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.parser.peek_event()
        tag = getattr(event, "ctag", None)
        self._path.append((parent, index))
        node = super().compose_node(parent, index)
        self._path.pop()
        if isinstance(event, AliasEvent):  # the same contents at another place
            node = copy.copy(node)
            node.start_mark = event.start_mark
        if tag is not None:
            self.tags[id(node)] = str(tag).replace("tag:yaml.org,2002:", "!!")
        return node

    def key(self) -> str:
        """The keys and list positions down to the node that is being composed."""
        parts = []
        for parent, index in self._path:
            if isinstance(parent, SequenceNode):
                parts.append(str(len(parent.value)))
            elif isinstance(index, ScalarNode):
                parts.append(index.value)
        return ".".join(parts)


def _place(error: MarkedYAMLError) -> tuple[int, int]:
    mark = error.problem_mark or error.context_mark
    return (mark.line, mark.column) if mark else (-1, -1)


__all__ = ["MappingNode", "Node", "Scalar", "ScalarNode", "SequenceNode", "Tree", "YamlError"]
__all__ += ["plain_scalar", "read_yaml"]
