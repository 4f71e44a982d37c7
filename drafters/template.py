"""Infill templates: an answer with blanks, `x = <blank:1>; y = 9`, laid out on one canvas."""

import re
from dataclasses import dataclass
from typing import Protocol

from hybrid.errors import RequestError

_BLANK = re.compile(r"<blank:(\d{1,18})>")


class Encoder(Protocol):
    """The part of a tokenizer that a template needs."""

    def encode(self, text: str) -> list[int]: ...

    def encode_continuation(self, text: str) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Template:
    """The canvas of an infill request: `None` where the drafter writes, token ids elsewhere.

    The text is followed by an end token, repeated to the end of the canvas.
    """

    tokens: tuple[int | None, ...]
    text_tokens: int

    @property
    def blank_tokens(self) -> int:
        """How many tokens the drafter writes."""
        return self.tokens.count(None)

    @property
    def min_tokens(self) -> int:
        """How many tokens the answer has at least: up to the last one that was given."""
        written = enumerate(self.tokens[: self.text_tokens])
        return max((index + 1 for index, token in written if token is not None), default=0)


def parse_template(text: str, encoder: Encoder, canvas_length: int, end_token: int) -> Template:
    """The canvas that a template describes; raises RequestError if it cannot be one."""
    sizes = [int(size) for size in _BLANK.findall(text)]
    if "<blank" in _BLANK.sub("", text) or not sizes or 0 in sizes:
        allowed = "write each blank as <blank:N> with the number of its tokens, such as <blank:3>"
        raise RequestError("infill", text, allowed)
    if sum(sizes) > canvas_length:  # before anything of that size is built
        given = f"{sum(sizes)} blank tokens"
        raise RequestError("infill", given, f"text and blanks fit in {canvas_length} tokens")
    tokens: list[int | None] = []
    parts = _BLANK.split(text)
    for index, part in enumerate(parts):
        if index % 2:
            tokens += [None] * int(part)
            continue
        if index + 1 < len(parts):
            part = part.removesuffix(" ")  # a space before a blank is part of the blank's token
        if part:
            tokens += encoder.encode_continuation(part) if tokens else encoder.encode(part)
    if len(tokens) > canvas_length:
        given = f"{len(tokens)} tokens, {tokens.count(None)} of them blank"
        raise RequestError("infill", given, f"text and blanks fit in {canvas_length} tokens")
    end = [end_token] * (canvas_length - len(tokens))
    return Template((*tokens, *end), len(tokens))
