"""Patterns of requests: what they match, what is refused, and that no pattern is slow."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.patterns import MAX_PATTERN_CHARACTERS, Pattern


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("^[0-9]+$", "42", "42 dogs"),
        ("og", "dog", "cat"),
        (r"(?i)^yes\b", "YES, of course", "yesterday"),
        (r"^\p{Lu}\p{L}*$", "École", "école"),
        ("", "", None),
        ("^a.b$", "a\u2603b", "a\nb"),
    ],
)
def test_a_pattern_matches_anywhere_unless_anchored(
    pattern: str, good: str, bad: str | None
) -> None:
    assert Pattern(pattern).matches(good)
    assert bad is None or not Pattern(pattern).matches(bad)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(", "missing )"),
        ("(?=a)", "no look-around"),
        ("(?<!a)b", "no look-around"),
        (r"(a)\1", "no back-references"),
        ("a++", "repetition operator"),
        (r"a\Z", r"\\z for the end"),
        ("a{1001}", "repetition size"),
        ("((a|b|.)?){400}", "instructions"),
        ("[^x]{999}" * 20, "instructions"),
        ("a" * (MAX_PATTERN_CHARACTERS + 1), "characters"),
        ("\ud800", "UTF-8"),
    ],
)
def test_a_pattern_that_is_not_understood_or_too_large_says_so(pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(")", r"\)")):
        Pattern(pattern)


@pytest.mark.parametrize("pattern", ["^(a+)+b$", "(x+x+)+y", "^(a|a)*b$", "(.*)(.*)(.*)(.*)[bc]$"])
def test_patterns_that_backtracking_never_finishes_are_answered(pattern: str) -> None:
    assert not Pattern(pattern).matches("ax" * 0 + "a" * 50_000)


def test_a_pattern_travels_to_another_process() -> None:
    pattern = Pattern("^[0-9]+$")
    again = pickle.loads(pickle.dumps(pattern))
    assert again == pattern and again.matches("1")


@given(st.text(max_size=30), st.text(max_size=60))
def test_any_pattern_is_compiled_or_refused(pattern: str, text: str) -> None:
    try:
        compiled = Pattern(pattern)
    except ValueError:
        return
    assert compiled.matches(text) in (True, False)


def test_half_a_surrogate_pair_in_a_text_is_no_error() -> None:
    assert Pattern("b").matches("\ud800b")
