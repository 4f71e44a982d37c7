"""Infill templates: text that stays, blanks that are written."""

import pytest

from hybrid.conversation.tokenizer import ChatTokenizer
from hybrid.drafters.template import parse_template
from hybrid.embedded import weights_path
from hybrid.errors import RequestError

TOKENIZER = ChatTokenizer.from_directory(weights_path("drafter"))
END = 1


def layout(text: str, canvas_length: int = 32) -> tuple[int | None, ...]:
    return parse_template(text, TOKENIZER, canvas_length, END).tokens


def test_text_stays_blanks_are_free_and_ends_fill_the_rest() -> None:
    tokens = layout("x =<blank:2>; y = 9", 16)
    given = [token for token in tokens if token is not None]
    assert tokens.count(None) == 2
    assert len(tokens) == 16
    assert TOKENIZER.decode([t for t in given if t != END]).replace(" ", "") == "x=;y=9"
    assert given[-1] == END


def test_filling_the_blanks_gives_the_tokens_of_the_whole_text() -> None:
    whole = TOKENIZER.encode("c = 7; n = 4; y = 3; z = 1")
    tokens = layout("c =<blank:1>; n = 4; y =<blank:1>; z = 1")
    filled = [w if t is None else t for t, w in zip(tokens, whole, strict=False)]
    assert filled == whole


@pytest.mark.parametrize("text", ["<blank:3>", "<blank:3> end", "start <blank:3>", "a<blank:1>b"])
def test_blanks_may_stand_anywhere(text: str) -> None:
    assert layout(text).count(None) in (1, 3)


def test_a_space_before_a_blank_belongs_to_the_blank() -> None:
    assert layout("x = <blank:1>; y = 2") == layout("x =<blank:1>; y = 2")


@pytest.mark.parametrize(
    "text",
    [
        *("no blanks", "<blank:0>", "<blank:>", "<blank>", "<blank:-1>", "<blank:two>", ""),
        *("<blank:1", "<blank: 1>", "<blank:1><blank:0>", "<blank:1> <blank", "<BLANK:1>"),
        f"<blank:{'9' * 5000}>",
    ],
)
def test_malformed_templates_are_told_how_to_write_one(text: str) -> None:
    with pytest.raises(RequestError, match="<blank:N>") as caught:
        layout(text)
    assert caught.value.field == "infill"


@pytest.mark.parametrize(("text", "fits"), [("<blank:8>", True), ("<blank:9>", False)])
def test_a_template_fits_in_one_canvas(text: str, fits: bool) -> None:
    if fits:
        assert layout(text, 8) == (None,) * 8
    else:
        with pytest.raises(RequestError, match="fit in 8 tokens"):
            layout(text, 8)
    with pytest.raises(RequestError, match="fit in"):
        layout("a <blank:99999999999>")


@pytest.mark.parametrize(
    ("text", "tokens"), [("<blank:4>", 0), ("x <blank:4>", 1), ("x <blank:4>;", 6)]
)
def test_an_answer_is_at_least_as_long_as_what_was_given(text: str, tokens: int) -> None:
    assert parse_template(text, TOKENIZER, 8, END).min_tokens == tokens
