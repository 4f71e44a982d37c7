"""From records to a policy: what every task should be allowed, and what to expect of it.

One half of the items (the even ones) chooses, the other half tells how good the choice is. For each
task the plans on the front of accuracy and latency stay in the planner's hands; what they were
measured to be becomes the policy's quality table.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybrid.errors import CheckpointError
from hybrid.experiments.records import Record
from hybrid.experiments.replay import Replayed, replay_records
from hybrid.experiments.statistics import Interval, bootstrap_mean
from hybrid.experiments.summary import Results
from hybrid.policies.loader import load_policy, parse_policy, preset_names
from hybrid.policies.schema import Policy

_FITTED = ("none", "cascade", "verify", "generate")  # modes that the quality table can tell apart
_LEAST_ITEMS = 4  # of a task, under a plan, in the half that chooses
Plan = tuple[int | None, str]  # a cap on steps, and a refine mode


@dataclass(frozen=True, slots=True)
class Fitted:
    """A policy as plain values, and a sentence a task about what was chosen."""

    values: Mapping[str, Any]
    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Rival:
    """A preset against the fitted policy held to the preset's own p95, on the other half.

    `difference` is the fitted policy's accuracy less the preset's, over the requests that both have
    an answer for.
    """

    name: str
    preset: Replayed
    fitted: Replayed
    limit_s: float
    pairs: int
    difference: float
    interval: Interval


def halves(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Records to choose by, and records to report on: items with an even and an odd number."""
    return [r for r in records if r.item % 2 == 0], [r for r in records if r.item % 2 == 1]


def fit(results: Results) -> Fitted:
    """The policy for the tasks that were recorded; raises CheckpointError if too little was."""
    chosen_by, _ = halves(results.everything)
    tasks: dict[str, Any] = {}
    quality: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for task in results.tasks:
        plans = _plans([record for record in chosen_by if record.task == task])
        table = _quality(plans)
        if table is None:
            continue
        front = _front(plans)
        caps = sorted({cap for cap, _ in front if cap is not None})
        modes = [mode for mode in _FITTED if any(mode == found for _, found in front)]
        section: dict[str, Any] = {"refine": {"mode": modes}}
        if caps:
            section["draft"] = {"max_denoising_steps": caps}
        threshold = _threshold([r for r in chosen_by if r.task == task and r.mode == "verify"])
        if "cascade" in modes and threshold is not None:
            section["refine"]["min_token_logprob"] = threshold
        tokens = [record.tokens for found in plans.values() for record in found]
        section["expected_tokens"] = max(1, round(float(np.median(tokens))))
        tasks[task], quality[task] = section, table
        reasons[task] = ", ".join(_say(plan, plans[plan]) for plan in front)
    if not tasks:
        message = "no task has both drafts without refining and answers of the refiner alone"
        raise CheckpointError(str(results.folder), message)
    models = results.about["arms"][0]["policy"]["models"]
    values = {
        "version": 1,
        "description": f"Fitted to the records of {results.about['experiment']['name']}.",
        "models": {role: _model(models[role]) for role in ("drafter", "refiner")},
        "tasks": tasks,
        "quality": quality,
    }
    return Fitted(values, reasons)


def against_presets(results: Results, fitted: Fitted) -> list[Rival]:
    """The fitted policy against every preset on the half that it was not fitted to."""
    _, held_out = halves(results.everything)
    rivals = []
    for name in preset_names():
        preset = replay_records(results, held_out, load_policy(name))
        if not preset.scores:
            continue
        limit = preset.latency(0.95)
        mine = replay_records(results, held_out, within(fitted, limit))
        scores = dict(zip(preset.places, preset.scores, strict=True))
        both = [
            score - scores[place]
            for place, score in zip(mine.places, mine.scores, strict=True)
            if place in scores
        ]
        difference = sum(both) / len(both) if both else 0.0
        rivals.append(Rival(name, preset, mine, limit, len(both), difference, bootstrap_mean(both)))
    return rivals


def within(fitted: Fitted, budget_s: float) -> Policy:
    """The fitted policy with a budget."""
    import json

    budget = {"defaults": {"budget": f"{1e6 * budget_s:.0f}us"}}
    return parse_policy(json.dumps({**fitted.values, **budget}), "fitted")


def _plans(records: Sequence[Record]) -> dict[Plan, list[Record]]:
    """Records by plan, those that were cut short left out."""
    plans: dict[Plan, list[Record]] = defaultdict(list)
    for record in {r.key: r for r in records}.values():
        usable = record.score is not None and record.finish_reason != "budget"
        if usable and record.mode in _FITTED:
            plans[record.cap, record.mode].append(record)
    return {plan: found for plan, found in plans.items() if len(found) >= _LEAST_ITEMS}


def _quality(plans: Mapping[Plan, Sequence[Record]]) -> dict[str, Any] | None:
    """What was measured of a task; None if drafts or the refiner alone were not."""
    drafts = {cap: found for (cap, mode), found in plans.items() if mode == "none"}
    alone = plans.get((None, "generate"))
    if not drafts or not alone:
        return None
    caps = sorted(cap for cap in drafts if cap is not None)
    verified = {c: plans[c, "verify"] for c in caps if (c, "verify") in plans}
    cascaded = {c: plans[c, "cascade"] for c in caps if (c, "cascade") in plans}
    table: dict[str, Any] = {
        "draft": {cap: _accuracy(drafts[cap]) for cap in caps},
        "refiner": _accuracy(alone),
        "steps_used": {
            cap: round(float(np.mean([record.steps for record in drafts[cap]])), 2) for cap in caps
        },
    }
    if verified:
        table["agreement"] = {cap: _agreement(found) for cap, found in verified.items()}
    if cascaded:
        table["cascade"] = {cap: _accuracy(found) for cap, found in cascaded.items()}
    return table


def _front(plans: Mapping[Plan, Sequence[Record]]) -> list[Plan]:
    """Plans that no other beats in both accuracy and median latency, the fastest first."""
    ordered = sorted(plans, key=lambda plan: (_median_s(plans[plan]), -_accuracy(plans[plan])))
    front: list[Plan] = []
    for plan in ordered:
        if not front or _accuracy(plans[plan]) > _accuracy(plans[front[-1]]):
            front.append(plan)
    return front


def _threshold(verified: Sequence[Record]) -> float | None:
    """The least log-probability at which taking drafts is most accurate; of equals, the lowest.

    A verified record has both: the draft with its least likely token, and the refiner's answer.
    """
    known = [
        (record.least_logprob, bool(record.was_right), record.is_right)
        for record in verified
        if record.least_logprob is not None
    ]
    if not known:
        return None
    candidates = sorted({round(min(0.0, least), 2) for least, _, _ in known})

    def accuracy(threshold: float) -> float:
        return sum(draft if least >= threshold else mended for least, draft, mended in known)

    return max(candidates, key=lambda threshold: (accuracy(threshold), -threshold))


def _agreement(records: Sequence[Record]) -> float:
    """The share of drafts that the refiner kept."""
    shares = [(r.accepted_tokens or 0) / r.draft_tokens for r in records if r.draft_tokens]
    return round(float(np.clip(np.mean(shares), 0, 1)), 4) if shares else 0.0


def _accuracy(records: Sequence[Record]) -> float:
    return round(float(np.mean([record.score or 0.0 for record in records])), 4)


def _median_s(records: Sequence[Record]) -> float:
    return float(np.median([record.seconds for record in records]))


def _say(plan: Plan, records: Sequence[Record]) -> str:
    cap, mode = plan
    name = mode if cap is None else f"{cap} steps" + ("" if mode == "none" else f" + {mode}")
    return f"{name} ({100 * _accuracy(records):.0f} %, {1e3 * _median_s(records):.0f} ms)"


def _model(model: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What names a model, without a server's settings where there is no server."""
    if model is None:
        return None
    named = {"backend": model["backend"], "model": model["model"]}
    return dict(model) if model["backend"] == "vllm" else named
