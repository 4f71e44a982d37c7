"""The channels of an answer: what a model thinks before it answers is marked, and is no answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OPEN, CLOSE = "<|channel>", "<channel|>"


@dataclass(frozen=True, slots=True)
class Channels:
    """The ids of the tokens that open and close a thought; None for a model without."""

    open: int | None
    close: int | None

    @classmethod
    def of(cls, added: Mapping[str, int]) -> "Channels":
        """Those of a tokenizer with these added tokens."""
        return cls(added.get(OPEN), added.get(CLOSE))

    def is_thought(self, token_ids: Sequence[int]) -> list[bool]:
        """Of each token, whether it belongs to a thought or marks one.

        A thought that is not closed is one to the end. One that is closed and was not opened began
        in the prompt.
        """
        inside, flags = False, [False] * len(token_ids)
        for index, token in enumerate(token_ids):
            if token == self.close and self.close is not None:
                flags[: index + 1] = [True] * (index + 1) if not inside else flags[: index + 1]
                flags[index] = True
                inside = False
                continue
            inside = inside or (token == self.open and self.open is not None)
            flags[index] = inside
        return flags


def without_name(thought: str) -> str:
    """A thought's text without the name of its channel, which is its first line."""
    name, newline, text = thought.partition("\n")
    return text if newline and name.strip().isidentifier() else thought
