"""Drafts and gauges as rich text, in styles that hold on light and dark backgrounds.

Text that a model wrote is never trusted: control characters appear as their codes, and nothing in
it is read as markup.
"""

import unicodedata
from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text

from hybrid.deadline import format_duration
from hybrid.types import Denoised, Edit

NOISE_NATS = 2.0  # seven words equally likely: more than that is not yet a word
BAR_CELLS = 12
CONTEXT = 30  # characters of unchanged text shown on either side of an edit
_UNSAFE_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}
_UNSAFE_DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def printable(text: str) -> str:
    """The text with control, bidirectional and surrogate characters as codes such as \\x1b."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    unsafe = (
        unicodedata.category(character) in _UNSAFE_CATEGORIES
        or unicodedata.bidirectional(character) in _UNSAFE_DIRECTIONS
    )
    if unsafe and character not in "\n\t":
        return character.encode("unicode_escape").decode("ascii")
    return character


def crystallising(step: Denoised) -> Text:
    """The canvas at one step: kept tokens bright, likely ones dim, the rest dots of their width."""
    text = Text()
    for piece, kept, entropy in zip(step.pieces, step.accepted, step.entropy, strict=True):
        shown = printable(piece)
        if kept:
            text.append(shown, "bold")
        else:
            text.append(shown if entropy < NOISE_NATS else _noise(shown), "dim")
    return text


def _noise(piece: str) -> str:
    return "".join(c if c.isspace() else "·" * cell_len(c) for c in piece)


def mean_entropy(step: Denoised) -> float:
    """Nats a position, over the canvas up to its end token."""
    return sum(step.entropy) / max(1, len(step.entropy))


def edited(draft: str, edits: Sequence[Edit]) -> Text:
    """The draft as 'old→new' where the refiner changed it; long stretches between are cut short.

    The arrow keeps old and new apart where a terminal strikes nothing through.
    """
    text, end = Text(), 0
    for edit in edits:
        text.append(_shortened(draft[end : edit.start], is_first=end == 0))
        text.append(printable(edit.old), "strike red").append("→", "dim")
        text.append(printable(edit.new), "green")
        end = edit.end
    return text.append(_shortened(draft[end:], is_last=True))


def _shortened(kept: str, *, is_first: bool = False, is_last: bool = False) -> str:
    if len(kept) <= 2 * CONTEXT:
        return printable(kept)
    before = "" if is_first else printable(kept[:CONTEXT])
    after = "" if is_last else printable(kept[-CONTEXT:])
    return f"{before} … {after}"


def bar(fraction: float, style: str) -> Text:
    """A bar of BAR_CELLS cells; its rest is thinner, so that it reads without colour too."""
    filled = round(BAR_CELLS * min(1.0, max(0.0, fraction)))
    return Text().append("━" * filled, style).append("╌" * (BAR_CELLS - filled), "dim")


def clock(elapsed_s: float, budget_s: float | None) -> Text:
    """'26 ms of 300 ms' and how much of the budget that is."""
    text = Text(format_duration(elapsed_s))
    if budget_s is None:
        return text
    fraction = elapsed_s / budget_s
    style = "green" if fraction <= 0.8 else "yellow" if fraction <= 1 else "red"
    return text.append(f" of {format_duration(budget_s)} ").append_text(bar(fraction, style))
