"""Checks: what each of them passes and fails, how they are written, and that they stop nothing."""

import time
from typing import Any

import pytest

from hybrid.checks import MAX_CHECKS, Satisfies, examine, read_check
from hybrid.errors import RequestError
from hybrid.requests import make_request
from hybrid.types import CheckOutcome

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("given_check", "good", "bad"),
    [
        ({"contains": "dog"}, "the dog", "the DOG"),
        ({"regex": r"^\d+$"}, "42", "42 dogs"),
        ({"regex": "og"}, "dog", "cat"),
        ({"json": True}, '{"a": [1, null]}', "{'a': 1}"),
        ({"json": True}, "1e5", "NaN"),
        ({"json": True}, "[" * 50 + "]" * 50, "[" * 5000 + "]" * 5000),
        ({"json": True}, "9" * 400, "9" * 10_000),
        ({"json": {"enum": [1, 2]}}, "2", "-Infinity"),
        ({"json": SCHEMA}, '{"n": 3}', '{"n": "3"}'),
        ({"json": SCHEMA}, '{"n": 3, "m": 1}', "[]"),
        ({"length": {"least": 2}}, "ab", "a"),
        ({"length": {"most": 2}}, "", "abc"),
        ({"length": {"least": 1, "most": 1}}, "é", "éé"),
        ({"repetition": 4}, "no no no no", "in in in in in in in in"),
        ({"repetition": 3}, "one two three one two three", "one two three " * 3),
        (str.isupper, "ABC", "abc"),
    ],
)
def test_each_passes_what_it_should(given_check: Any, good: str, bad: str) -> None:
    check = read_check(given_check)
    assert check.problem(good) is None
    assert check.problem(bad)


def test_a_schemas_failure_names_the_place() -> None:
    assert read_check({"json": SCHEMA}).problem('{"n": "x"}') == "$.n: 'x' is not of type 'integer'"


@pytest.mark.parametrize(
    "wrong",
    [
        "contains",
        {},
        {"contains": "a", "regex": "b"},
        {"contains": ""},
        {"contains": 3},
        {"regex": "("},
        {"regex": r"(a)\1"},
        {"regex": "(?=a)"},
        {"regex": None},
        {"json": False},
        {"json": {"type": "nothing"}},
        {"length": {}},
        {"length": {"least": 3, "most": 2}},
        {"length": {"least": -1}},
        {"length": {"most": True}},
        {"length": {"atleast": 3}},
        {"repetition": 1},
        {"repetition": "4"},
        3,
    ],
)
def test_a_check_that_means_nothing_is_refused(wrong: Any) -> None:
    with pytest.raises(RequestError) as caught:
        read_check(wrong)
    assert caught.value.field.startswith("checks")


def test_an_unknown_kind_gets_a_suggestion() -> None:
    with pytest.raises(RequestError, match="did you mean 'contains'"):
        read_check({"contain": "x"})


def test_a_function_may_say_why() -> None:
    def is_polite(text: str) -> bool | str:
        return "please" in text or "say please"

    assert examine([read_check(is_polite)], "now") == (CheckOutcome("is_polite", "say please"),)
    assert examine([read_check(is_polite)], "please")[0].passed
    assert read_check(lambda text: False).problem("x") == "not satisfied"


def test_a_check_that_raises_or_takes_too_long_has_failed() -> None:
    def broken(text: str) -> bool:
        raise KeyError("lost")

    def slow(text: str) -> bool:
        time.sleep(0.2)
        return True

    raised, late = examine([Satisfies(broken), Satisfies(slow, time_limit_s=0.01)], "x")
    assert raised == CheckOutcome("broken", "raised KeyError: 'lost'")
    assert late == CheckOutcome("slow", "took more than 0.01 s")


def test_an_error_is_short_whatever_was_given() -> None:
    for huge in ({"regex": "(" + "a" * 10**6}, {"json": {"const": ["x" * 10**6]} | {"$ref": "y"}}):
        with pytest.raises(RequestError) as caught:
            read_check(huge)
        assert len(str(caught.value)) < 1000


def test_a_request_has_a_limited_number_of_checks() -> None:
    checks = [{"contains": str(n)} for n in range(MAX_CHECKS + 1)]
    assert len(make_request("x", {"checks": checks[1:]}).checks) == MAX_CHECKS
    with pytest.raises(RequestError, match=f"at most {MAX_CHECKS}"):
        make_request("x", {"checks": checks})
