"""Checks: what each of them passes and fails, how they are written, and that they stop nothing."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.checks import DoesNotRepeat, Satisfies, examine, read_check
from hybrid.errors import RequestError
from hybrid.types import CheckOutcome

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("given_check", "good", "bad"),
    [
        ({"contains": "dog"}, "the dog", "the DOG"),
        ({"regex": r"^\d+$"}, "42", "42 dogs"),
        ({"regex": "og"}, "dog", "cat"),
        ({"json": True}, '{"a": [1, null]}', "{'a': 1}"),
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


@given(st.text(alphabet="ab c\n", max_size=200), st.integers(2, 6))
def test_repetition_is_what_a_plain_search_finds(text: str, times: int) -> None:
    def repeats(unit: int, start: int) -> bool:
        piece = text[start : start + unit]
        count = 1
        while text.startswith(piece, start + count * unit):
            count += 1
        run = text[start : start + count * unit]
        return count >= times and len(run) >= 16 and not run.isspace()

    problem = DoesNotRepeat(times).problem(text)
    if problem:
        assert any(repeats(u, s) for u in range(1, 81) for s in range(len(text)) if text[s : s + u])
