"""What a person sees of a draft: kept, likely and noise; never a control character."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from hybrid.cli.render import bar, clock, crystallising, edited, printable
from hybrid.types import Denoised, Edit


def step(*tokens: tuple[str, bool, float]) -> Denoised:
    pieces, kept, entropy = zip(*tokens, strict=True)
    return Denoised(0, 1, 8, pieces, kept, entropy)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("héllo 日本 🙂", "héllo 日本 🙂"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\rb\x07\x00\x7f", "a\\rb\\x07\\x00\\x7f"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202eevil", "\\u202eevil"),
        ("\udcff", "\\udcff"),
    ],
)
def test_control_characters_are_shown_as_codes(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(alphabet=st.characters()))
def test_nothing_printable_can_steer_a_terminal(text: str) -> None:
    shown = printable(text).replace("\n", "").replace("\t", "")
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in shown)
    shown.encode("utf-8")


def test_kept_is_bold_likely_is_dim_and_the_rest_is_dots() -> None:
    text = crystallising(step((" big", True, 0.0), (" dog", False, 0.5), (" ???", False, 4.0)))
    assert text.plain == " big dog ···"
    assert [(span.start, span.end, span.style) for span in text.spans] == [
        (0, 4, "bold"),
        (4, 8, "dim"),
        (8, 12, "dim"),
    ]


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs", "Mn", "Me", "Cf"])))
def test_noise_is_as_wide_as_the_word_it_will_be(piece: str) -> None:
    noise = crystallising(step((piece, False, 9.0))).plain
    assert cell_len(noise) == cell_len(printable(piece))


def test_markup_in_model_text_is_text() -> None:
    assert crystallising(step(("[bold red]x[/]", True, 0.0))).plain == "[bold red]x[/]"


def test_edits_show_old_and_new() -> None:
    text = edited("the cat sat", [Edit(4, 7, "cat", "dog"), Edit(11, 11, "", " down")])
    assert text.plain == "the cat→dog sat→ down"
    assert {str(span.style) for span in text.spans} == {"strike red", "dim", "green"}


def test_long_unchanged_text_between_edits_is_cut_short() -> None:
    draft = "a" * 200 + "x" + "b" * 200 + "y" + "c" * 200
    edits = [Edit(200, 201, "x", "X"), Edit(401, 402, "y", "Y")]
    shown = edited(draft, edits).plain
    assert shown == (f" … {'a' * 30}x→X{'b' * 30} … {'b' * 30}y→Y{'c' * 30} … ")


@pytest.mark.parametrize(("fraction", "filled"), [(-1, 0), (0, 0), (0.5, 6), (1, 12), (7, 12)])
def test_a_bar_never_leaves_its_cells(fraction: float, filled: int) -> None:
    assert bar(fraction, "cyan").plain == "━" * filled + "╌" * (12 - filled)


@pytest.mark.parametrize(
    ("elapsed_s", "style"), [(0.1, "green"), (0.8, "green"), (0.9, "yellow"), (1.1, "red")]
)
def test_the_clock_warns_before_the_budget_is_spent(elapsed_s: float, style: str) -> None:
    assert style in [str(span.style) for span in clock(elapsed_s, 1.0).spans]


def test_the_clock_without_a_budget_is_just_the_time() -> None:
    assert clock(0.026, None).plain == "26 ms"
    assert clock(0.026, 0.3).plain == "26 ms of 300 ms ━╌╌╌╌╌╌╌╌╌╌╌"
