"""The pages of the documentation, and the examples in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in (*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *(ROOT / "docs").rglob("*.md"))
    if ".venv" not in page.parts
)
_FENCE = re.compile(
    r"(?P<note><!-- [^\n]* -->\n)?"
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"\n]+)")?\n(?P<code>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
_INDENTED = re.compile(r"(?:(?<=\n\n)|\A)((?:    [^\n]*\n+)+)")
NOT_RUN = "<!-- not run:"  # in front of a block, with the reason


def page_name(page: Path) -> str:
    """A page's path from the top of the checkout."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language, without those that say why they are not run."""
    found = _FENCE.finditer(page.read_text("utf-8"))
    return [
        match["code"]
        for match in found
        if match["language"] == language and not (match["note"] or "").startswith(NOT_RUN)
    ]


def write_files(page: Path, folder: Path) -> None:
    """Write the blocks that have a file's name as their title."""
    for match in _FENCE.finditer(page.read_text("utf-8")):
        if match["title"]:
            (folder / match["title"]).write_text(match["code"], "utf-8")


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every `hybrid` command in a shell block, behind any pipe, without comments."""
    text = page.read_text("utf-8")
    indented = [match[1] for match in _INDENTED.finditer(_FENCE.sub("\n", text))]
    for block in (*indented, *blocks(page, "sh")):
        for line in block.replace("\\\n", " ").splitlines():
            if "hybrid " not in line:
                continue
            try:
                words = shlex.split(line, comments=True)
            except ValueError:  # a table or a picture, no command
                continue
            start = len(words) - words[::-1].index("|") if "|" in words else 0
            if words[start : start + 1] == ["hybrid"]:
                end = words.index(">", start) if ">" in words[start:] else len(words)
                yield words[start + 1 : end]
