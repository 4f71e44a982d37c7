"""Stop strings: text up to the first of them, exactly, also where one lies across two parts."""

from collections.abc import Sequence


def cut(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The text before the first stop string, and which it was; of two at one place the shorter.

    In a stream it is the shorter that is complete first.
    """
    found = [(at, len(stop), stop) for stop in stops if (at := text.find(stop)) >= 0]
    if not found:
        return text, None
    at, _, stop = min(found)
    return text[:at], stop


class StopCutter:
    """Cuts a text that comes in parts; holds back what may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """What can be sent now."""
        if self.found is not None:
            return ""
        text = self._held + text
        before, self.found = self._settled(text)
        self._held = "" if self.found is not None else text[len(before) :]
        return before

    def end(self) -> str:
        """What was held back, once no more text comes."""
        before, self.found = ("", self.found) if self.found else cut(self._held, self._stops)
        self._held = ""
        return before

    def _settled(self, text: str) -> tuple[str, str | None]:
        """The part of the text that no stop string, begun or complete, can still change."""
        before, found = cut(text, self._stops)
        begun = self._begun(text)
        # A stop string that begins earlier and is not complete yet may still come first.
        return (
            (before, found) if found is not None and len(before) <= begun else (text[:begun], None)
        )

    def _begun(self, text: str) -> int:
        """Where a stop string that is not complete may begin; the text's end if nowhere."""
        longest = max((len(stop) for stop in self._stops), default=0)
        for at in range(max(0, len(text) - longest + 1), len(text)):
            rest = text[at:]
            if any(stop.startswith(rest) and stop != rest for stop in self._stops):
                return at
        return len(text)
