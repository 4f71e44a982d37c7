"""Regular expressions from requests, searched in time linear in the text by RE2.

RE2 has no look-around and no back-references, and `\\d`, `\\w`, `\\s` and `\\b` mean ASCII
characters; `\\p{L}` is any letter. `$` is the end of the text, also where a line end precedes it.
"""

import re2

MAX_PATTERN_CHARACTERS = 2000
MAX_PROGRAM_SIZE = 2000  # RE2 instructions; the slowest pattern reads 100,000 characters in 0.4 s
_MAX_BYTES = 512 << 10  # of a compiled pattern with its caches; re2 keeps the last 128 compiled
_SYNTAX = "the syntax is RE2's: no look-around, no back-references, \\z for the end"


class Pattern:
    """A compiled pattern; raises ValueError for one that RE2 does not know or finds too large."""

    __slots__ = ("_regex", "text")

    def __init__(self, text: str) -> None:
        if len(text) > MAX_PATTERN_CHARACTERS:
            raise ValueError(f"it has {len(text)} characters, at most {MAX_PATTERN_CHARACTERS}")
        options = re2.Options()
        options.max_mem = _MAX_BYTES
        options.log_errors = False
        options.never_capture = True
        too_large = f"it compiles to more than {MAX_PROGRAM_SIZE} instructions"
        try:
            regex = re2.compile(text, options)
        except UnicodeEncodeError:
            raise ValueError("it cannot be written as UTF-8") from None
        except re2.error as error:
            problem = error.args[0].decode(errors="replace")
            message = too_large if "too large" in problem else f"{problem}; {_SYNTAX}"
            raise ValueError(message) from None
        if max(regex.programsize, regex.reverseprogramsize) > MAX_PROGRAM_SIZE:
            raise ValueError(too_large)
        self.text, self._regex = text, regex

    def matches(self, text: str) -> bool:
        """Whether it matches somewhere in the text."""
        return self._regex.search(text.encode(errors="replace")) is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"

    def __reduce__(self) -> tuple[type["Pattern"], tuple[str]]:
        return Pattern, (self.text,)
