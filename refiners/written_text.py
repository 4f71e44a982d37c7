"""Reports what a refiner writes while it writes it, as text."""

from collections.abc import Callable, Sequence

from hybrid.protocols import Until
from hybrid.types import Written

OnTokens = Callable[[Sequence[int]], None]  # is told all tokens of the answer so far
_PARTIAL = "\ufffd"  # what a tokenizer makes of a character whose last bytes are not there yet


class WrittenText:
    """Turns tokens into `Written` events; characters appear once all their bytes are there."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], emit: Callable[[Written], None]
    ) -> None:
        self._decode, self._emit, self._text = decode, emit, ""

    def __call__(self, token_ids: Sequence[int]) -> None:
        text = self._decode(token_ids).rstrip(_PARTIAL)
        if text != self._text:
            self._text = text
            self._emit(Written(text))


def reporting(on_tokens: OnTokens | None, kept: Sequence[int] = ()) -> Until | None:
    """For `RefinerSession.write`: reports each token after those that are `kept`, stops nothing."""
    if on_tokens is None:
        return None

    def report(written: Sequence[int]) -> bool:
        on_tokens((*kept, *written))
        return False

    return report
