"""How answers are scored."""

import pytest

from hybrid.errors import RequestError
from hybrid.experiments.scorers import SCORERS, check_scorer, find_scorer


@pytest.mark.parametrize(
    ("name", "reference", "text", "score"),
    [
        ("exact", "a b", " a  b\n", 1), ("exact", "a b", "a c", 0),
        ("contains", "b", "a b c", 1), ("contains", "d", "a b c", 0),
        ("numeric", "12", "so it is 12.", 1), ("numeric", "1,200", "1200.0", 1),
        ("numeric", "12", "12 and then 13", 0), ("numeric", "12", "twelve", 0),
        ("json", '{"a": 1, "b": [2]}', '{"b":[2],"a":1}', 1), ("json", "[1]", "[2]", 0),
        ("json", "[1]", "oops", 0), ("json", "[1]", "[" * 100_000, 0), ("json", "1", "true", 0),
        ("json", "[1]", "[1.0]", 1), ("regex", "^(a+)+b$", "a" * 100_000, 0),
        ("regex", "^a+$", "aaa", 1), ("regex", "^a+$", "aab", 0),
        ("chrf", "the quick fox", "the quick fox", 1), ("chrf", "abc", "xyz", 0),
        ("code", "assert f(2) == 4", "def f(x): return x * x", 1),
        ("code", "assert f(2) == 4", "def f(x): return x", 0),
        ("code", "pass", "syntax error here", 0),
        ("embedded", "46", "46", 1),
    ],
)  # fmt: skip
def test_scores(name: str, reference: str, text: str, score: float) -> None:
    prompt = "add 12 + 34" if name == "embedded" else "?"
    assert SCORERS[name](prompt, reference, text) == pytest.approx(score)


def test_chrf_is_between() -> None:
    assert 0.3 < SCORERS["chrf"]("?", "the quick brown fox", "the quick red fox") < 0.95


@pytest.mark.parametrize(("name", "reference"), [("numeric", "no number"), ("json", "{oops")])
def test_a_broken_reference_is_nobodys_wrong_answer(name: str, reference: str) -> None:
    with pytest.raises(ValueError):
        SCORERS[name]("?", reference, "1")


def test_a_function_of_yours() -> None:
    assert find_scorer("operator:eq") is not None
    with pytest.raises(RequestError, match="did you mean 'numeric'"):
        check_scorer("numerik")
    with pytest.raises(RequestError, match="can be imported"):
        find_scorer("operator:no_such")
