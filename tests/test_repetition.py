"""Repetition: what a model gone astray writes is found, what people write is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.repetition import Run, find_repetition

TABLE = "| name | n |\n|------|---|\n| a | 1 |\n| b | 1 |\n| c | 1 |\n| d | 1 |\n"


@pytest.mark.parametrize(
    "text",
    [
        TABLE,
        "| --- | --- | --- | --- | --- | --- |",
        "|:---:|:---:|:---:|:---:|:---:|",
        "| yes | yes | yes | yes | yes |\n| no | no | no | no | no |",
        "=" * 80,
        "Title\n" + "-" * 60,
        "_" * 40 + "\n" + "*" * 40 + "\n" + "." * 60,
        "0x0000000000000000",
        "0x" + "F" * 64,
        "1.0000000000",
        "1.00000000000000000000",
        "3.3333333333333333333333",
        "[0, 0, 0, 0, 0, 0, 0, 0, 0]",
        "[true, true, true, true, true, true, true, true]",
        "null,null,null,null,null,null",
        "0.0\n0.0\n0.0\n0.0\n0.0\n0.0\n",
        "1 1 1 1 1 1 1 1 1 1 1",
        "</div></div></div></div></div>",
        "&nbsp;&nbsp;&nbsp;&nbsp;&nbsp;",
        "\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t",
        " " * 500,
        "ha ha ha ha",
        "no no no no",
        "A A A A A A A A A",
        "(((((((((((((((((((())))))))))))))))))))",
        "\U0001f602" * 30,
        "1010101010101010101010101010",
    ],
)
def test_what_people_write_is_no_repetition(text: str) -> None:
    assert find_repetition(text, 4) is None


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("in in in in in in in in", "in"),
        ("so: one two three one two three one two three one two three.", "one two three"),
        ("\u4f60\u597d\u5417" * 8, "\u4f60\u597d\u5417"),
        ("I do not know. " * 5, "I do not know."),
        ("- buy milk\n" * 6, "- buy milk"),
        ("| a | b |\n" * 9, "| a | b |"),
        ("true, " * 40, "true,"),
        ("the answer is 4, " * 8, "the answer is 4,"),
        ("n" * 60, "n"),
        ("=" * 500, "="),
        ("hahaha" * 10, "ha"),
        ("\U0001f602" * 500, "\U0001f602"),
    ],
)
def test_what_a_model_gone_astray_writes_is_found(text: str, unit: str) -> None:
    run = find_repetition(text, 4)
    assert run is not None and run.unit == unit


def test_how_often_is_told() -> None:
    assert find_repetition("well: " + "over and out " * 7, 4) == Run("over and out", 7)


@given(st.text("ab c", min_size=40, max_size=40), st.integers(2, 6))
def test_a_run_is_really_in_the_text(text: str, times: int) -> None:
    run = find_repetition(text, times)
    if run is not None:
        assert run.times >= times and run.unit in text


@given(
    st.lists(st.text("abcdefgh", min_size=2, max_size=9), min_size=2, max_size=6, unique=True),
    st.integers(4, 9),
    st.text("xyz \n", max_size=50),
)
def test_a_phrase_said_again_and_again_is_always_found(
    words: list[str], times: int, around: str
) -> None:
    phrase = " ".join(words) + " "
    text = around + phrase * times + around
    if len(phrase * times) >= 16:
        run = find_repetition(text, times)
        assert run is not None and run.times >= times
