"""Which task a request is taken for, and how long its answer is expected to be."""

from collections.abc import Callable
from typing import Any

import pytest

from hybrid.errors import RequestError
from hybrid.policies.loader import parse_policy
from hybrid.policies.signals import gather
from hybrid.requests import make_request
from hybrid.types import Signals

POLICY = parse_policy(
    "version: 1\ndefaults: {expected_tokens: 40}\ntasks: {sort: {expected_tokens: 9}, chat: {}}\n",
    "p",
)


def read(
    recognise: Callable[[str], str | None] | None = None, blanks: int = 0, **options: Any
) -> Signals:
    request = make_request("sort up: 2 1", options)  # type: ignore[arg-type]
    return gather(request, 7, blanks, recognise, POLICY)


def test_the_task_given_is_the_task() -> None:
    assert read(task="sort") == Signals(7, "sort", "given", 9, 0)


def test_a_task_may_be_recognised() -> None:
    assert read(lambda prompt: prompt.split()[0]) == Signals(7, "sort", "recognised", 9, 0)
    assert read(lambda prompt: "sort", task="chat").task == "chat"


def test_a_task_that_the_policy_does_not_know_is_not_recognised() -> None:
    nothing = Signals(7, None, "default", 40, 0)
    assert read(lambda prompt: "sums") == nothing
    assert read(lambda prompt: None) == nothing


def test_without_a_recogniser_the_words_decide() -> None:
    signals = read()
    assert (signals.task, signals.task_source, signals.expected_tokens) == ("sort", "classified", 9)
    assert 0.5 <= signals.task_confidence < 1


def test_words_that_say_too_little_leave_the_defaults() -> None:
    request = make_request("purple", {})
    assert gather(request, 7, 0, None, POLICY) == Signals(7, None, "default", 40, 0)


def test_an_unknown_task_is_told_with_the_known_ones() -> None:
    with pytest.raises(RequestError, match="knows sort, chat; did you mean 'sort'") as caught:
        read(task="srt")
    assert caught.value.field == "task"


def test_blanks_say_how_long_the_answer_is() -> None:
    assert read(task="sort", blanks=3) == Signals(7, "sort", "given", 3, 3)
