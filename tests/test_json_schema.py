"""JSON Schemas of requests: their drafts are honoured, nothing is fetched, and work is bounded."""

import json
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.checks import read_check
from hybrid.errors import RequestError
from hybrid.json_schema import MAX_DEPTH, MAX_NODES, MAX_WORK, Schema

DRAFT_4 = "http://json-schema.org/draft-04/schema#"
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
DRAFT_2019 = "https://json-schema.org/draft/2019-09/schema"


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"$schema": DRAFT_4, "minimum": 1, "exclusiveMinimum": True}, 2, 1),
        ({"$schema": DRAFT_7, "items": [{"type": "null"}], "additionalItems": False}, [None], [1]),
        ({"$schema": DRAFT_2019, "dependentRequired": {"a": ["b"]}}, {"b": 1}, {"a": 1}),
        ({"prefixItems": [{"type": "null"}], "items": False}, [None], [None, 1]),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "number"}}}, 1.5, "1.5"),
        ({"$ref": "#n", "$defs": {"n": {"$anchor": "n", "type": "number"}}}, 1, "x"),
        ({"properties": {"next": {"$ref": "#"}}, "required": ["v"]}, {"v": 1}, {"next": {}}),
        ({"pattern": r"^\p{L}+$"}, "é", "1"),
        (
            {"patternProperties": {"^n_": {"type": "number"}}, "additionalProperties": False},
            {"n_a": 1},
            {"m_a": 1},
        ),
        ({"additionalProperties": {"type": "null"}, "properties": {"a": {}}}, {"a": 1}, {"b": 1}),
        ({"uniqueItems": True}, [1, True, "1", [1], {"a": 1}, {"a": True}], [1, 1.0]),
        ({"uniqueItems": True}, [0, False], [{"a": [1]}, {"a": [1.0]}]),
        (
            {"unevaluatedProperties": False, "allOf": [{"properties": {"a": {}}}]},
            {"a": 1},
            {"b": 1},
        ),
    ],
)
def test_a_schema_is_applied_as_its_draft_says(schema: Any, good: Any, bad: Any) -> None:
    assert Schema(schema).problem(good) is None
    assert Schema(schema).problem(bad)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef", "$recursiveRef"])
@pytest.mark.parametrize("target", ["http://127.0.0.1:9/s", "file:///etc/hostname", "other.json"])
def test_a_reference_out_of_the_schema_is_refused(keyword: str, target: str) -> None:
    schema = {"properties": {"a": {"anyOf": [{keyword: target}]}}}
    with pytest.raises(RequestError, match="nothing is fetched") as caught:
        read_check({"json": schema})
    assert caught.value.field == "checks.json"


@pytest.mark.usefixtures("no_network")
def test_a_base_address_does_not_make_a_reference_remote(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"const": "secret"}')
    for base in (secret.as_uri(), "http://127.0.0.1:9/"):
        inner = {"$id": base, "$ref": "#/nowhere"}
        problem = Schema({"properties": {"a": inner}}).problem({"a": 1})
        assert problem and "does not have" in problem and '"secret"' not in problem


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"$schema": "http://127.0.0.1:9/draft"}, "none of the drafts"),
        ({"$schema": 7}, "none of the drafts"),
        ({"properties": {"a": {"$schema": DRAFT_7}}}, "at the top"),
        ({"$ref": "#/$defs/a"}, "leads nowhere"),
        ({"type": "nothing"}, "nothing"),
        ({"pattern": r"(a)\1"}, "no back-references"),
        ({"patternProperties": {"(?=a)": {}}}, "no look-around"),
        ({"patternProperties": {"a": {}}, "unevaluatedProperties": False}, "not supported"),
        ({"const": float("nan")}, "no JSON value"),
        ({"const": {1, 2}}, "no JSON value"),
        ({1: True}, "a key is not text"),
        ({"enum": [*range(MAX_NODES)]}, f"more than {MAX_NODES}"),
    ],
)
def test_a_schema_that_cannot_be_followed_says_why(schema: Any, said: str) -> None:
    with pytest.raises(ValueError, match="(?s).*" + said):
        Schema(schema)


def test_a_schema_nested_without_end_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"not": deep}
    with pytest.raises(ValueError, match=f"deeper than {MAX_DEPTH}"):
        Schema(deep)
    endless: dict[str, Any] = {}
    endless["not"] = endless
    with pytest.raises(ValueError, match=f"deeper than {MAX_DEPTH}"):
        Schema(endless)


DOUBLING = {
    "$ref": "#/$defs/0",
    "$defs": {
        "40": {},
        **{str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(40)},
    },
}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"$ref": "#"}, "levels deep"),
        ({"$dynamicRef": "#a", "$dynamicAnchor": "a"}, "levels deep"),
        ({"allOf": [{"$ref": "#"}]}, "levels deep"),
        (DOUBLING, f"more than {MAX_WORK} steps"),
        ({"items": {"not": {"enum": ["x"] * 2000}}}, f"more than {MAX_WORK} steps"),
    ],
)
def test_work_without_end_is_a_failed_check(schema: Any, said: str) -> None:
    problem = Schema(schema).problem([{"a": n} for n in range(100)])
    assert problem and said in problem


def test_a_pattern_in_a_schema_takes_linear_time() -> None:
    schema = Schema({"patternProperties": {"^(a+)+b$": {}}, "additionalProperties": False})
    assert schema.problem({"a" * 5000: 1})
    assert Schema({"pattern": "^(a+)+b$"}).problem("a" * 5000)


def test_a_message_is_short_whatever_it_quotes() -> None:
    problem = Schema({"type": "object"}).problem(["x" * 100_000])
    assert problem and len(problem) < 400


def test_a_schema_stays_what_it_was_and_travels() -> None:
    written: dict[str, Any] = {"type": "object"}
    schema = Schema(written)
    written["type"] = "array"
    assert schema.problem({}) is None
    assert pickle.loads(pickle.dumps(schema)) == schema


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=12,
)
_KEYWORDS = st.sampled_from(
    [
        *("type", "properties", "items", "enum", "$ref", "allOf", "pattern", "minimum", "$schema"),
        *("required", "patternProperties", "additionalProperties", "uniqueItems", "$id", "$defs"),
    ]
)


@settings(max_examples=200)
@given(st.dictionaries(_KEYWORDS, _VALUES | st.dictionaries(_KEYWORDS, _VALUES)), _VALUES)
def test_any_schema_is_applied_or_refused_with_a_value_error(schema: Any, value: Any) -> None:
    try:
        check = Schema(schema)
    except ValueError:
        return
    problem = check.problem(json.loads(json.dumps(value)))
    assert problem is None or isinstance(problem, str)
