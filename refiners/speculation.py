"""Copying: where in a known text the next tokens are likely to come from.

Text that repeats a source can be proposed from it and checked in one pass, however long the copied
run. Proposals change the number of passes, never the answer.
"""

from collections.abc import Sequence

_CONTEXT = 2  # tokens that must agree before a lost place in the source is found again


class Source:
    """A text that is being copied in part, and the place that has been reached in it."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._token_ids = tuple(token_ids)
        self._place: int | None = 0

    def propose(self, most: int) -> tuple[int, ...]:
        """Up to `most` tokens that would come next; none where the writer has gone its own way."""
        if self._place is None:
            return ()
        return self._token_ids[self._place : self._place + max(0, most)]

    def follow(self, written: Sequence[int], new: int) -> None:
        """Find the place again after `new` more tokens, the last of `written`."""
        place = self._place
        if place is not None:
            expected = self._token_ids[place : place + new]
            if tuple(written[-new:]) == expected:
                self._place = place + new
                return
        self._place = self._find(tuple(written[-_CONTEXT:]), place or 0)

    def _find(self, context: tuple[int, ...], near: int) -> int | None:
        """Behind the nearest occurrence of `context`, the next one first."""
        if len(context) < _CONTEXT:
            return None
        starts = range(len(self._token_ids) - _CONTEXT + 1)
        found = [at for at in starts if self._token_ids[at : at + _CONTEXT] == context]
        ahead = [at for at in found if at >= near - _CONTEXT]
        nearest = ahead[0] if ahead else (found[-1] if found else None)
        return None if nearest is None else nearest + _CONTEXT
