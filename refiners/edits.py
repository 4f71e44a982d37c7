"""How a refined text differs from its draft, in spans that a reader can follow."""

import re
from difflib import SequenceMatcher

from hybrid.types import Edit

_WORD = re.compile(r"\s+|\w+|[^\w\s]")


def find_edits(draft: str, refined: str, why: str = "") -> tuple[Edit, ...]:
    """The changes from `draft` to `refined`, whole words each, in order."""
    old, new = _WORD.findall(draft), _WORD.findall(refined)
    starts = [0]
    for word in old:
        starts.append(starts[-1] + len(word))
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    return tuple(
        Edit(starts[i1], starts[i2], "".join(old[i1:i2]), "".join(new[j1:j2]), why)
        for kind, i1, i2, j1, j2 in matcher.get_opcodes()
        if kind != "equal"
    )
