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
    """A refine mode: `answer` says in a few words what comes out.

    `settings` are the refine settings, besides the mode itself, that its answer depends on.
    `mends` is a guess for tasks that were not measured: the share of a draft's failures that the
    mode notices and that come right, if what replaces them is right.
    """

    guarantee: Guarantee
    cost: Cost
    does: str
    answer: str
    needs_refiner: bool = False
    settings: tuple[str, ...] = ()
    mends: float = 0.0

    @property
    def needs_drafter(self) -> bool:
        """Whether it begins with a draft."""
        return self.cost.drafts != "none"

    @property
    def contains(self) -> tuple[RefineMode, ...]:
        """The modes whose work is part of this one's, so that it takes at least as long."""
        if not self.needs_drafter:
            return ()
        return ("none", "score") if self.cost.reads == "scorer" else ("none",)

    @property
    def changes_drafts(self) -> bool:
        """Whether its answer may be another text than the draft that it begins with."""
        cost = self.cost
        is_read_only = cost.writes == "nothing" and cost.drafts == "one" and not cost.reviews
        return self.needs_drafter and not is_read_only


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
        settings=("scorer", "drafts"),
        mends=0.5,
    ),
    "repair": Mode(
        "guarded",
        Cost(reads="scorer", drafts="again"),
        "rewrites weak tokens with the rest held fast, and keeps what is surer or passes a check",
        "the draft, or a better one",
        settings=("scorer", "min_token_logprob", "repair_with"),
        mends=0.2,
    ),
    "guide": Mode(
        "none",
        Cost(reads="refiner", reviews=True),
        "votes while the draft is denoised: holds fast what it would write, renoises doubts",
        "a draft under its influence",
        needs_refiner=True,
        settings=("min_token_logprob", "guide_every"),
        mends=0.5,
    ),
    "cascade": Mode(
        "ar_or_draft",
        Cost(reads="scorer", writes="what differs"),
        "takes a draft that scores well, rewrites any other from where it disagrees",
        "a draft that passed, or its own",
        needs_refiner=True,
        settings=("scorer", "min_mean_logprob", "min_token_logprob", "temperature"),
        mends=0.9,
    ),
    "verify": Mode(
        "lossless",
        Cost(reads="refiner", writes="what differs"),
        "keeps the longest prefix that it would have written itself, then goes on",
        "exactly what it writes alone",
        needs_refiner=True,
        settings=("temperature",),
    ),
    "rewrite": Mode(
        "none",
        Cost(reads="refiner", writes="what differs"),
        "writes a final answer with the draft in its prompt; copied text costs one pass a run",
        "its own, having read the draft",
        needs_refiner=True,
        settings=("temperature",),
        mends=0.8,
    ),
    "generate": Mode(
        "lossless",
        Cost(writes="all", drafts="none"),
        "writes alone",
        "exactly what it writes alone",
        needs_refiner=True,
        settings=("temperature",),
    ),
}
