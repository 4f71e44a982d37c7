"""docs/cards.md is what the memory plan says now."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_current() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from cards import page
    finally:
        sys.path.pop(0)
    assert (ROOT / "docs" / "cards.md").read_text() == page(), (
        "write it again: python benchmarks/cards.py > docs/cards.md"
    )
