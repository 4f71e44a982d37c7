"""JSON Schemas from requests: checked when they arrive, applied with bounded work, no retrieval.

jsonschema by itself fetches a `$ref` over HTTP or from a file and searches patterns with
backtracking. Here a `$ref` stays within the schema, patterns are RE2's, and the work of one
validation is counted, so that what passes and fails does not depend on the machine's speed.
`format` is an annotation and is not checked, as the specification has it.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import cache
from typing import Any

from hybrid.patterns import Pattern

MAX_NODES = 5_000  # keys and values of a schema
MAX_DEPTH = 100  # of a schema, of a text's JSON, and of subschemas applied within each other
MAX_WORK = 100_000  # keywords applied, and items and characters that they look at
DRAFTS = ("draft-04", "draft-06", "draft-07", "2019-09", "2020-12")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_UNEVALUATED = ("unevaluatedProperties", "unevaluatedItems")
_MESSAGE_CHARACTERS = 200

_Keyword = Callable[[Any, Any, Any, Any], Iterator[Any] | None]


class WorkLimit(Exception):
    """A validation that takes more than `MAX_WORK` or `MAX_DEPTH`."""


class _Work:
    """What one validation has done so far, and the schema's patterns."""

    __slots__ = ("depth", "done", "patterns")

    def __init__(self, patterns: Mapping[str, Pattern]) -> None:
        self.done = self.depth = 0
        self.patterns = patterns

    def add(self, amount: int) -> None:
        self.done += amount
        if self.done > MAX_WORK:
            raise WorkLimit(f"validation takes more than {MAX_WORK} steps")

    def matches(self, pattern: str, text: str) -> bool:
        self.add(1 + len(text))
        return (self.patterns.get(pattern) or Pattern(pattern)).matches(text)


_WORK: ContextVar[_Work] = ContextVar("json_schema_work")


class Schema:
    """A JSON Schema that is valid under its draft; raises ValueError for any other.

    The draft is that of `$schema`, 2020-12 without one.
    """

    __slots__ = ("_patterns", "_validator", "given")

    def __init__(self, given: Mapping[str, Any]) -> None:
        given = dict(given)
        _check_size(given)
        self.given = given = copy.deepcopy(given)
        draft = _draft(given.get("$schema"))
        rules = {name: value for name, value in given.items() if name != "$schema"}
        _check_references(rules)
        self._patterns = dict(_compile_patterns(rules))
        if problem := _problem(_validator(draft, draft.META_SCHEMA), rules, {}):
            raise ValueError(problem)
        _resolve_references(draft, rules)
        self._validator = _validator(draft, rules)

    def problem(self, value: object) -> str | None:
        """The first thing in a JSON value that the schema does not allow, with its place."""
        return _problem(self._validator, value, self._patterns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and other.given == self.given

    __hash__ = None  # type: ignore[assignment]  # as of the mapping

    def __reduce__(self) -> tuple[type["Schema"], tuple[Mapping[str, Any]]]:
        return Schema, (self.given,)


def depth_problem(value: object) -> str | None:
    """What is wrong with a JSON value that is nested too deeply, found without recursion."""
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            return f"nested deeper than {MAX_DEPTH} levels"
        level = [child for parent in level for child in _children(parent)]
        depth += 1
    return None


def _children(value: object) -> list[Any]:
    if isinstance(value, dict):
        return [*value.values()]
    return value if isinstance(value, list) else []


def _check_size(schema: object) -> None:
    """Raise ValueError for what is not JSON, or too large or deep to be a schema."""
    nodes, level, depth = 0, [schema], 0
    while level:
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
        for value in level:
            nodes += 1 + (len(value) if isinstance(value, dict) else 0)
            if isinstance(value, dict):
                if not all(isinstance(key, str) for key in value):
                    raise ValueError("a key is not text")
            elif not isinstance(value, str | int | float | bool | list | None):
                raise ValueError(f"{type(value).__name__} is no JSON value")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{value} is no JSON value")
        if nodes > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES} keys and values")
        level = [child for value in level for child in _children(value)]
        depth += 1


def _draft(named: object) -> Any:
    """jsonschema's validator class of a `$schema`."""
    from jsonschema import validators

    known = {
        "draft-04": validators.Draft4Validator,
        "draft-06": validators.Draft6Validator,
        "draft-07": validators.Draft7Validator,
        "2019-09": validators.Draft201909Validator,
        "2020-12": validators.Draft202012Validator,
    }
    if named is None:
        return known["2020-12"]
    for draft in known.values():
        if isinstance(named, str) and named.rstrip("#") == str(_id_of(draft)).rstrip("#"):
            return draft
    raise ValueError(f"$schema {str(named)[:80]!r} is none of the drafts {', '.join(DRAFTS)}")


def _id_of(draft: Any) -> object:
    return draft.META_SCHEMA.get("$id", draft.META_SCHEMA.get("id"))


def _mappings(schema: object) -> Iterator[Mapping[str, Any]]:
    level = [schema]
    while level:
        yield from (value for value in level if isinstance(value, dict))
        level = [child for value in level for child in _children(value)]


def _check_references(schema: Mapping[str, Any]) -> None:
    keys: set[str] = set()
    for part in _mappings(schema):
        keys.update(part)
        for keyword in _REFERENCES:
            target = part.get(keyword)
            if isinstance(target, str) and not target.startswith("#"):
                message = f"{keyword} {target[:80]!r}: nothing is fetched; refer to a part: #/..."
                raise ValueError(message)
        if isinstance(part.get("$schema"), str):
            raise ValueError("$schema stands at the top of a schema, not within it")
    if "patternProperties" in keys and not keys.isdisjoint(_UNEVALUATED):
        raise ValueError("patternProperties beside unevaluatedProperties is not supported")


def _resolve_references(draft: Any, schema: Mapping[str, Any]) -> None:
    """Raise ValueError for a reference to what the schema does not have."""
    import jsonschema_specifications
    import referencing.jsonschema

    parts = [*_mappings(schema)]
    if any(isinstance(part.get(key), str) for part in parts[1:] for key in ("$id", "id")):
        return  # references are relative to these, and are resolved when they are applied
    specification = referencing.jsonschema.specification_with(str(_id_of(draft)))
    root = specification.create_resource(schema)
    resolver = jsonschema_specifications.REGISTRY.resolver_with_root(root)
    for target in {str(part["$ref"]) for part in parts if isinstance(part.get("$ref"), str)}:
        try:
            resolver.lookup(target)
        except referencing.exceptions.Unresolvable:
            raise ValueError(f"$ref {target[:80]!r} leads nowhere") from None


def _compile_patterns(schema: Mapping[str, Any]) -> Iterator[tuple[str, Pattern]]:
    """Every regular expression of a schema, compiled."""
    for part in _mappings(schema):
        found = [part["pattern"]] if isinstance(part.get("pattern"), str) else []
        by_pattern = part.get("patternProperties")
        for text in [*found, *(by_pattern if isinstance(by_pattern, dict) else ())]:
            try:
                yield text, Pattern(text)
            except ValueError as error:
                raise ValueError(f"pattern {text[:80]!r}: {error}") from None


def _problem(validator: Any, value: object, patterns: Mapping[str, Pattern]) -> str | None:
    """The first error, where a reference that leads nowhere is one."""
    from referencing.exceptions import Unresolvable

    token = _WORK.set(_Work(patterns))
    try:
        error = next(validator.iter_errors(value), None)
        if error is None:
            return None
        message = error.message
        if len(message) > _MESSAGE_CHARACTERS:
            message = message[:_MESSAGE_CHARACTERS] + "..."
        return f"{error.json_path}: {message}"
    except WorkLimit as error:
        return str(error)
    except Unresolvable as error:
        return f"the schema refers to {str(error.ref)[:80]!r}, which it does not have"
    finally:
        _WORK.reset(token)


def _validator(draft: Any, schema: Mapping[str, Any]) -> Any:
    from jsonschema_specifications import REGISTRY  # the drafts' own schemas; retrieves nothing

    return _bounded(draft)(schema, registry=REGISTRY)


@cache
def _bounded(draft: Any) -> Any:
    """The draft's validator class with every keyword counted, and ours for what is not linear."""
    import attrs
    from jsonschema import validators

    own = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "uniqueItems": _unique_items,
    }
    keywords = {name: _counted(own.get(name, do)) for name, do in draft.VALIDATORS.items()}
    bounded = validators.extend(draft, keywords)
    attributes = [(a.name, a.alias) for a in attrs.fields(bounded) if a.init]

    def evolve(self: Any, **changes: Any) -> Any:
        # jsonschema's own changes to an unbounded class at a subschema with a `$schema`.
        unchanged = {alias: getattr(self, name) for name, alias in attributes}
        return type(self)(**{**unchanged, **changes})

    bounded.evolve = evolve
    return bounded


def _counted(keyword: _Keyword) -> _Keyword:
    def apply(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        work = _WORK.get()
        work.add(1 + _length(value) + _length(instance))
        work.depth += 1
        if work.depth > MAX_DEPTH:
            raise WorkLimit(f"the schema applies itself more than {MAX_DEPTH} levels deep")
        try:
            yield from keyword(validator, value, instance, schema) or ()
        finally:
            work.depth -= 1

    return apply


def _length(value: object) -> int:
    return len(value) if isinstance(value, list | dict) else 0


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    if isinstance(instance, str) and not _WORK.get().matches(pattern, instance):
        yield _error(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, by_pattern: Mapping[str, Any], instance: Any, schema: Any
) -> Iterator[Any]:
    if not isinstance(instance, dict):
        return
    for pattern, subschema in by_pattern.items():
        for key, value in instance.items():
            if _WORK.get().matches(pattern, key):
                yield from validator.descend(value, subschema, path=key, schema_path=pattern)


def _additional_properties(
    validator: Any, allowed: Any, instance: Any, schema: Mapping[str, Any]
) -> Iterator[Any]:
    if not isinstance(instance, dict):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, value in instance.items():
        if key in named or any(_WORK.get().matches(pattern, key) for pattern in patterns):
            continue
        if allowed is False:
            yield _error(f"{key!r} is not one of the properties")
        else:
            yield from validator.descend(value, allowed, path=key)


def _unique_items(validator: Any, unique: bool, instance: Any, schema: Any) -> Iterator[Any]:
    if unique and isinstance(instance, list):
        seen = set()
        for item in instance:
            key = _identity(item)
            if key in seen:
                yield _error(f"{item!r} stands in it more than once")
                return
            seen.add(key)


def _identity(value: object) -> object:
    """Equal for equal JSON values: 1 and 1.0 are, 1 and true are not."""
    _WORK.get().add(1)
    if isinstance(value, list):
        return tuple(map(_identity, value))
    if isinstance(value, dict):
        return frozenset((key, _identity(item)) for key, item in value.items())
    return type(value) is bool, value


def _error(message: str) -> Any:
    from jsonschema import ValidationError

    return ValidationError(message)
