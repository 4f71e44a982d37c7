"""Answers that need not be run, because another record contains all of them.

A `verify` record has the draft, the refiner's log-probabilities of it, and the refiner's own
answer. This gives the draft without refining, and `cascade` under any threshold.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hybrid.experiments.records import Record, settings_key
from hybrid.modes import MODES

ByCondition = Mapping[str, Record]  # one request's records, by `settings_key` of the plan


def find(recorded: ByCondition, settings: Mapping[str, Any]) -> Record | None:
    """The record of these settings, or one worked out of another; None if there is neither."""
    found = recorded.get(settings_key(settings))
    if found is not None:
        return found
    refine = settings["refine"]
    if refine["mode"] == "none":
        verified = _verified(recorded, settings, 0.0)
        return verified and as_draft(verified)
    if refine["mode"] == "cascade" and refine["scorer"] == "refiner":
        verified = _verified(recorded, settings, refine["temperature"])
        mean, least = refine["min_mean_logprob"], refine["min_token_logprob"]
        return verified and as_cascade(verified, mean, least)
    return None


def as_draft(verified: Record) -> Record | None:
    """The draft alone; None if it was not scored."""
    if verified.draft_score is None or verified.draft_text is None:
        return None
    return replace(
        verified,
        text=verified.draft_text,
        score=verified.draft_score,
        seconds=verified.seconds - verified.refine_s,
        refine_s=0.0,
        passes=0,
        tokens=verified.draft_tokens,
        mode="none",
    )


def as_cascade(verified: Record, min_mean: float | None, min_token: float | None) -> Record | None:
    """What `cascade` would have answered: the draft if it passes, else the answer of `verify`.

    A draft that passes costs one pass that reads it, estimated as refining time over passes.
    """
    mean, least = verified.mean_logprob, verified.min_logprob
    if mean is None or least is None or verified.is_complete is None or not verified.passes:
        return None
    passes = (min_mean is None or mean >= min_mean) and (min_token is None or least >= min_token)
    if not (passes and verified.is_complete):
        return replace(verified, mode="cascade")
    draft = as_draft(verified)
    reading = verified.refine_s / verified.passes
    return draft and replace(
        draft, seconds=draft.seconds + reading, refine_s=reading, passes=1, mode="cascade"
    )


def with_plain_drafts(records: Sequence[Record]) -> list[Record]:
    """The same records, with the unguided draft of equal settings and seed in guided ones.

    `guide` changes a draft while it is made, so it has no draft of its own to compare with. Where
    the unguided draft was not run, `draft_score` is None.
    """
    by_pair: dict[tuple[str, int, int, int], dict[str, Record]] = defaultdict(dict)
    for record in records:
        if record.settings is not None and record.score is not None:
            by_pair[record.pair_key].setdefault(settings_key(record.settings), record)

    def compared(record: Record) -> Record:
        if not MODES[record.mode].cost.reviews or record.settings is None:
            return record
        plain = {**record.settings, "refine": {"mode": "none"}, "refiner": None}
        draft = find(by_pair[record.pair_key], plain)
        text, score = (draft.text, draft.score) if draft else (None, None)
        return replace(record, draft_text=text, draft_score=score)

    return [compared(record) for record in records]


def _verified(
    recorded: ByCondition, settings: Mapping[str, Any], temperature: float
) -> Record | None:
    """The `verify` record of the same draft, whatever refiner it had where none is asked for."""
    wanted = {"mode": "verify", "temperature": temperature}
    for record in recorded.values():
        if record.settings is None or record.settings["refine"] != wanted:
            continue
        same = all(record.settings[name] == settings[name] for name in _DRAFTED_WITH)
        if same and settings["refiner"] in (None, record.settings["refiner"]):
            return record
    return None


_DRAFTED_WITH = ("draft", "max_new_tokens", "drafter")
