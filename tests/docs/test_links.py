"""What pages point at is there: links between them, their sections, and files of the checkout."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, page_name

FOLDERS = sorted(path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != ".")
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]*)\)")
FILE = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+)`")
OUTPUT = ("runs/", "site/", "dist/", "build/")  # what commands make


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text("utf-8")):
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_files_that_are_named_exist(page: Path) -> None:
    named = [name for name in FILE.findall(page.read_text("utf-8")) if not name.startswith(OUTPUT)]
    assert [name for name in named if not (ROOT / name).exists()] == []
