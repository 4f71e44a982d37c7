"""Text that spells control tokens, such as `<eos>` or `<|turn>`, kept apart from the tokens.

Where the caller's text spells one, it is marked before it goes into the chat template, so that what
the template writes itself stays a token. When the prompt is encoded, a marked spelling is cut after
its first character: no token is recognised across the cut, and the text is the same.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tokenizers import Tokenizer

from hybrid.types import Message

_START, _END = "\ufdd0", "\ufdd1"  # characters that Unicode reserves for such marks
_MARKERS = re.compile(r"<\|.*>|<.*\|>", re.DOTALL)  # Gemma 4's and its predecessors' spelling


class ControlTokens:
    """The tokens of a tokenizer that steer a model: all special ones, and those in its template."""

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        added = tokenizer.get_added_tokens_decoder()
        self.ids = {
            token.content: number
            for number, token in added.items()
            if token.special
            or _MARKERS.fullmatch(token.content)
            or (token.content in template and not token.content.isspace())
        }
        self.numbers = frozenset(self.ids.values())
        longest_first = sorted(filter(None, self.ids), key=len, reverse=True)
        spelled = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._spelled = re.compile(spelled)
        self._marked = re.compile(f"{_START}({spelled}){_END}|[{_START}{_END}]")

    def mark(self, message: Message) -> Message:
        """The message with the control tokens that its text spells marked."""
        if message.control_tokens:
            return message
        if not message.parts:
            return replace(message, content=self._mark(message.content))
        parts = tuple(self._mark_parts(message.parts))
        return replace(message, content="".join(parts), parts=parts)

    def are_spelled(self, text: str) -> bool:
        """Whether the text spells any."""
        return self._spelled.search(text) is not None

    def pieces(self, text: str) -> Iterator[str]:
        """Marked text in pieces to be encoded one by one, without the marks."""
        parts = self._marked.split(text)
        piece = parts[0]
        for spelled, following in zip(parts[1::2], parts[2::2], strict=True):
            yield piece + (spelled or "")[:1]
            piece = (spelled or "")[1:] + following
        yield piece

    def cut(self, text: str) -> Iterator[str]:
        """Text in pieces to be encoded one by one, none of which spells a control token."""
        start = 0
        for spelled in self._spelled.finditer(text):
            yield text[start : spelled.start() + 1]
            start = spelled.start() + 1
        yield text[start:]

    def _mark(self, text: str) -> str:
        text = text.replace(_START, "").replace(_END, "") if _has_marks(text) else text
        return self._spelled.sub(f"{_START}\\g<0>{_END}", text)

    def _mark_parts(self, parts: Sequence[str]) -> Iterator[str]:
        """Each part marked, also at its start where it would complete a token begun before it."""
        parts = [part.replace(_START, "").replace(_END, "") for part in parts]
        spans = [match.span() for match in self._spelled.finditer("".join(parts))]
        start = 0
        for part in parts:
            divides = any(first < start < last for first, last in spans)
            yield f"{_END if divides else ''}{self._mark(part)}"
            start += len(part)


def _has_marks(text: str) -> bool:
    return _START in text or _END in text
