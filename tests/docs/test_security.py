"""The page on security names tests that are there, for every "no" of its table."""

import re

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 20
    for file, test in named:
        assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE), test


def test_every_mark_in_the_table_has_its_tests() -> None:
    used = set(re.findall(r"\(([A-Z]\d)\)", PAGE))
    assert used == set(re.findall(r"^\| ([A-Z]\d) \|", PAGE, re.MULTILINE))
