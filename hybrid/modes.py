"""The refine modes as data: what each promises, needs and costs; the planner and the docs read it.

How each is done is in the file of its name. Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hybrid.types import Guarantee, RefineMode


@dataclass(frozen=True, slots=True)
class Cost:
    """What a mode adds to a draft.

    `reads`: who reads the finished draft once; `scorer` is the refiner or, for `scorer: self`, the
    drafter as it commits. `writes`: what the refiner writes a token a pass. `drafts`: one, several
    in a batch, or one that is sometimes denoised again. `reviews`: whether the refiner also reads
    the canvas every few denoising steps.
    """

    reads: Literal["nobody", "scorer", "refiner"] = "nobody"
    writes: Literal["nothing", "what differs", "all"] = "nothing"
    drafts: Literal["none", "one", "several", "again"] = "one"
    reviews: bool = False


@dataclass(frozen=True, slots=True)
class Mode:
    """A refine mode: `answer` says in a few words what comes out."""

    guarantee: Guarantee
    cost: Cost
    does: str
    answer: str
    needs_refiner: bool = False

    @property
    def needs_drafter(self) -> bool:
        """Whether it begins with a draft."""
        return self.cost.drafts != "none"


MODES: Mapping[RefineMode, Mode] = {
    "none": Mode("draft", Cost(), "nothing", "the draft"),
    "score": Mode(
        "draft",
        Cost(reads="scorer"),
        "attaches a log-probability to every token",
        "the draft, with a verdict",
    ),
    "best_of": Mode(
        "draft",
        Cost(reads="scorer", drafts="several"),
        "picks from several drafts made together, by checks and score",
        "the draft that scores best",
    ),
    "repair": Mode(
        "guarded",
        Cost(reads="scorer", drafts="again"),
        "rewrites weak tokens with the rest held fast, and keeps what is surer or passes a check",
        "the draft, or a better one",
    ),
    "guide": Mode(
        "none",
        Cost(reads="refiner", reviews=True),
        "votes while the draft is denoised: holds fast what it would write, renoises doubts",
        "a draft under its influence",
        needs_refiner=True,
    ),
    "cascade": Mode(
        "ar_or_draft",
        Cost(reads="scorer", writes="what differs"),
        "takes a draft that scores well, rewrites any other from where it disagrees",
        "a draft that passed, or its own",
        needs_refiner=True,
    ),
    "verify": Mode(
        "lossless",
        Cost(reads="refiner", writes="what differs"),
        "keeps the longest prefix that it would have written itself, then goes on",
        "exactly what it writes alone",
        needs_refiner=True,
    ),
    "rewrite": Mode(
        "none",
        Cost(reads="refiner", writes="what differs"),
        "writes a final answer with the draft in its prompt; copied text costs one pass a run",
        "its own, having read the draft",
        needs_refiner=True,
    ),
    "generate": Mode(
        "lossless",
        Cost(writes="all", drafts="none"),
        "writes alone",
        "exactly what it writes alone",
        needs_refiner=True,
    ),
}
