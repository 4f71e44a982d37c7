"""`guide`: the refiner votes on the canvas while it is denoised.

Every few steps, and before a canvas may end, the refiner reads the draft so far in one pass. The
leading tokens that it would have written itself are held fast from then on; tokens that it doubts
begin again from noise, and the first of them does not come again. Nothing is promised: the drafter
writes, under its influence.
"""

from collections.abc import Sequence

from hybrid.deadline import Deadline
from hybrid.errors import Cancelled
from hybrid.protocols import Refiner, RefinerSession, Scores, Votes
from hybrid.refiners.context import Outcome, RefineContext
from hybrid.refiners.verdict import evaluate_draft
from hybrid.types import DEFAULT_TOKEN_LOGPROB, RefineParams, Request


class RefinerGuide:
    """A guide (see `hybrid.protocols.Guide`) for one draft; what fails leaves the draft unguided.

    `problem` is what went wrong, if anything did.
    """

    def __init__(
        self,
        refiner: Refiner,
        request: Request,
        params: RefineParams,
        max_new_tokens: int,
        deadline: Deadline,
    ) -> None:
        self._refiner, self._request, self._deadline = refiner, request, deadline
        self._max_new_tokens = max_new_tokens
        least = params.min_token_logprob
        self._least = DEFAULT_TOKEN_LOGPROB if least is None else least
        self.every = params.guide_every
        self._settled = 0  # tokens of earlier canvases that the session has read
        self.session: RefinerSession | None = None
        self.problem: Exception | None = None

    def review(self, before: Sequence[int], token_ids: Sequence[int]) -> Votes:
        """See `Guide.review`."""
        if self.problem is not None or self._deadline.expired:
            return Votes()
        try:
            scores = self._read(before, token_ids)
        except Cancelled:
            raise
        except Exception as problem:
            self.problem = problem
            return Votes()
        read = len(scores.logprobs)  # fewer than tokens where the answer may not be so long
        agreed = next(
            (at for at, token in enumerate(token_ids[:read]) if token != scores.choices[at]), read
        )
        weak = {at for at, value in enumerate(scores.logprobs) if not value >= self._least}
        # Only at that position is everything before it agreed on.
        banned = {(agreed, token_ids[agreed])} if agreed in weak else set()
        return Votes(frozenset(range(agreed)), frozenset(weak), frozenset(banned))

    def _read(self, before: Sequence[int], token_ids: Sequence[int]) -> Scores:
        """The refiner's view of the canvas, after what earlier canvases have settled."""
        if self.session is None:
            self.session = self._refiner.open(self._request, self._max_new_tokens, self._deadline)
        session = self.session
        session.rewind(self._settled)
        unread, self._settled = before[self._settled :], len(before)
        room = session.max_answer_tokens - len(before)
        scores = session.score((*unread, *token_ids[:room]))
        return Scores(scores.logprobs[len(unread) :], scores.choices[len(unread) :])


def guide(context: RefineContext) -> Outcome:
    """The guided draft, judged by the refiner."""
    draft = context.draft
    logprobs = context.logprobs(draft, "refiner")
    failed = context.failed_checks(draft.text)
    return context.keep(evaluate_draft(logprobs, context.params, failed))
