"""An answer's scores, added to its record: by a scorer, or by the refiner's probabilities."""

import math
from collections.abc import Sequence
from dataclasses import replace

from hybrid.experiments.items import Item
from hybrid.experiments.records import Record
from hybrid.experiments.scorers import LIKELIHOOD, Scorers
from hybrid.protocols import Refiner
from hybrid.requests import make_request


def score_record(
    record: Record,
    item: Item,
    token_ids: Sequence[int],
    refiner: Refiner | None,
    scorers: Scorers,
) -> Record:
    """The record with scores of answer and draft, or with the error that the scorer raised."""
    try:
        if item.scorer == LIKELIHOOD:
            return replace(record, score=_likelihood(refiner, item, token_ids))
        score = scorers.find(item.scorer)
        of_answer, of_draft = _finite(score(item, record.text)), None
        if record.draft_text is not None:
            is_same = record.draft_text == record.text
            of_draft = of_answer if is_same else _finite(score(item, record.draft_text))
    except (Exception, SystemExit) as error:  # a scorer may raise anything
        return replace(record, score_error=f"{type(error).__name__}: {error}")
    return replace(record, score=of_answer, draft_score=of_draft)


def _finite(score: float) -> float:
    if not math.isfinite(score):
        raise ValueError(f"the scorer returned {score}")
    return float(score)


def _likelihood(refiner: Refiner | None, item: Item, token_ids: Sequence[int]) -> float:
    """The refiner's geometric mean probability of the answer's tokens."""
    if refiner is None:
        raise ValueError("scorer likelihood needs models.refiner, which is null")
    if not token_ids:
        return 0.0
    session = refiner.open(make_request(item.question, {}), len(token_ids))
    logprobs = session.score(token_ids).logprobs
    return math.exp(sum(logprobs) / len(logprobs))
