"""Stop strings cut text exactly, wherever its parts begin and end."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hybrid.serve.stop_strings import StopCutter, cut

LETTERS = st.text("ab ", max_size=12)
STOPS = st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3)


@pytest.mark.parametrize(
    ("stops", "text", "stop"),
    [
        ([], "one two three", None),
        (["two"], "one ", "two"),
        (["three", "two"], "one ", "two"),
        (["one two", "one"], "", "one"),
        (["four"], "one two three", None),
    ],
)
def test_text_ends_before_the_first_stop_string(
    stops: list[str], text: str, stop: str | None
) -> None:
    assert cut("one two three", stops) == (text, stop)


@example(["a", "a"], ["a", "aa"])
@given(st.lists(LETTERS), STOPS)
def test_parts_come_to_what_the_whole_text_is_cut_to(parts: list[str], stops: list[str]) -> None:
    cutter = StopCutter(stops)
    sent = "".join([*(cutter.feed(part) for part in parts), cutter.end()])
    assert (sent, cutter.found) == cut("".join(parts), stops)


@given(st.lists(LETTERS), STOPS)
def test_nothing_is_sent_that_a_later_part_could_take_back(
    parts: list[str], stops: list[str]
) -> None:
    cutter, sent = StopCutter(stops), ""
    for number, part in enumerate(parts):
        sent += cutter.feed(part)
        for rest in ("", *stops):
            so_far = "".join(parts[: number + 1])
            assert cut(so_far + rest, stops)[0].startswith(sent)


def test_text_is_held_back_no_longer_than_it_must() -> None:
    cutter = StopCutter(["END"])
    assert cutter.feed("a E") == "a "
    assert cutter.feed("x") == "Ex"
    assert cutter.feed("EN") == ""
    assert cutter.end() == "EN"
