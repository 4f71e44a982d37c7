"""How answers are scored."""

from pathlib import Path

import pytest

from hybrid.experiments.items import Item
from hybrid.experiments.scorers import SCORERS, Scorers


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


OURS = """
from dataclasses import dataclass
print("imported")
@dataclass
class Loose:
    most: int
def close(prompt, reference, text): return float(abs(int(text) - int(reference)) <= Loose(1).most)
def tagged(prompt, reference, text, item): return float(item.metadata["tag"] == text)
"""


def test_a_function_of_a_file_beside_the_experiment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ours.py").write_text(OURS)
    scorers = Scorers(tmp_path)
    scorers.check("ours:close")
    assert capsys.readouterr().out == ""  # checking imports nothing
    item = Item("t", 0, "?", "4", "ours:close", metadata={"tag": "red"})
    assert scorers.find("ours:close")(item, "5") == 1.0
    assert scorers.find("ours:tagged")(item, "red") == 1.0
    with pytest.raises(ValueError, match="did you mean 'close'"):
        scorers.check("ours:clsoe")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("numerik", "did you mean 'numeric'"), (":", "module:function"),
        (".x:y", "module:function"),
        ("x:", "module:function"), ("a:b:c", "module:function"), ("a b:c", "module:function"),
        ("../ours:f", "module:function"), ("os:execv", "standard library"),
        ("timeit:timeit", "standard library"), ("os.path:join", "standard library"),
        ("no_such_package_at_all:f", "no such package"), ("here:f", "no such package"),
        ("", "not one of"),
    ],
)  # fmt: skip
def test_what_is_no_scorer_is_refused_before_anything_is_imported(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    with pytest.raises(ValueError, match=said):
        Scorers(tmp_path / "elsewhere").check(name)
    with pytest.raises(ValueError, match=said):
        Scorers(tmp_path / "elsewhere").find(name)


def test_a_file_beside_that_does_not_parse_is_named(tmp_path: Path) -> None:
    (tmp_path / "ours.py").write_text("def f(:")
    with pytest.raises(ValueError, match=r"ours\.py.*invalid syntax"):
        Scorers(tmp_path).check("ours:f")
