"""A policy fitted to records: which plans each task allows, and their expected quality.

Items with an even number choose; `preset_comparison` reports on the others. Each task allows the
plans on the Pareto front of accuracy and latency. Measured accuracies become the policy's quality
table, shrunk towards a prior that counts as `_PRIOR` answers: without it, ten right drafts of one
step would count as much as ten right answers of the refiner.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hybrid.errors import CheckpointError
from hybrid.experiments.derive import as_cascade
from hybrid.experiments.records import Record, settings_key
from hybrid.experiments.summary import Results
from hybrid.modes import MODES
from hybrid.policies.candidates import prior_quality
from hybrid.types import DraftParams, RefineMode, plan_label

# As recorded; cascade is worked out of verify, and the others have answers of their own.
_MODES = [name for name, mode in MODES.items() if name == "none" or mode.guarantee == "lossless"]
_LEAST_ITEMS = 4  # of a task, under a plan, in the half that chooses
_FEW_ITEMS = 10  # below which a choice is mostly chance
_PRIOR = 2.0
Plan = tuple[int | None, RefineMode]  # a cap on steps, and a refine mode


@dataclass(frozen=True, slots=True)
class Fitted:
    """A policy as plain values, by task what was chosen, and what should be looked at."""

    values: Mapping[str, Any]
    reasons: Mapping[str, str]
    warnings: Sequence[str] = ()


def halves(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Records to choose by and records to report on: items with an even and an odd number."""
    return [r for r in records if r.item % 2 == 0], [r for r in records if r.item % 2 == 1]


def fit(results: Results) -> Fitted:
    """The policy for the tasks that were recorded; raises CheckpointError if too little was."""
    chosen_by, _ = halves(results.everything)
    tasks: dict[str, Any] = {}
    quality: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    warnings: list[str] = []
    for task in results.tasks:
        plans = _plans([record for record in chosen_by if record.task == task])
        if (None, "generate") not in plans or all(mode != "none" for _, mode in plans):
            continue
        threshold = _threshold(
            [r for (_, mode), found in plans.items() if mode == "verify" for r in found]
        )
        plans |= _cascades(plans, threshold)
        front = _front(plans)
        modes, caps = _allowed(front, plans)
        section: dict[str, Any] = {"refine": {"mode": modes}}
        if caps:
            section["draft"] = {"max_denoising_steps": caps}
        if "cascade" in modes:
            section["refine"]["min_token_logprob"] = threshold
        tokens = [record.tokens for found in plans.values() for record in found]
        section["expected_tokens"] = max(1, round(float(np.median(tokens))))
        tasks[task], quality[task] = section, _quality(plans)
        warnings += _warnings(task, plans)
        reasons[task] = ", ".join(_say(plan, plans[plan]) for plan in front)
    if not tasks:
        message = "no task has both drafts without refining and answers of the refiner alone"
        raise CheckpointError(str(results.folder), message)
    values = {
        "version": 1,
        "description": f"Fitted to the records of {results.manifest['experiment']['name']}.",
        "models": {role: _model(role, results) for role in ("drafter", "refiner")},
        "tasks": tasks,
        "quality": quality,
    }
    return Fitted(values, reasons, warnings)


def _warnings(task: str, plans: Mapping[Plan, Sequence[Record]]) -> list[str]:
    """What makes the choice for a task doubtful."""
    found = []
    if not any(record.score for records in plans.values() for record in records):
        found.append(f"{task}: no answer was right under any plan, so latency alone chose")
    fewest = min(len({record.item for record in records}) for records in plans.values())
    if fewest < _FEW_ITEMS:
        found.append(f"{task}: some plans were chosen by {fewest} items only")
    return found


def _plans(records: Sequence[Record]) -> dict[Plan, list[Record]]:
    """Records by plan: one a request, with default draft settings, and not cut by a budget."""
    plans: dict[Plan, list[Record]] = defaultdict(list)
    for record in {(r.pair_key, settings_key(r.settings or {})): r for r in records}.values():
        usable = record.score is not None and record.finish_reason != "budget"
        drafted = record.settings["draft"] if record.settings else None
        for mode in _MODES:
            if usable and record.mode == mode and _is_default(drafted):
                plans[record.max_steps, mode].append(record)
    return {plan: found for plan, found in plans.items() if len(found) >= _LEAST_ITEMS}


def _is_default(draft: Mapping[str, Any] | None) -> bool:
    """Whether a draft differs from the defaults in nothing but its cap."""
    if draft is None:
        return True
    return draft == asdict(DraftParams(max_denoising_steps=draft["max_denoising_steps"]))


def _cascades(
    plans: Mapping[Plan, Sequence[Record]], threshold: float | None
) -> dict[Plan, list[Record]]:
    """What `cascade` would have made of the drafts that were verified."""
    if threshold is None:
        return {}
    return {
        (cap, "cascade"): [
            made for record in found if (made := as_cascade(record, None, threshold)) is not None
        ]
        for (cap, mode), found in plans.items()
        if mode == "verify"
    }


def _quality(plans: Mapping[Plan, Sequence[Record]]) -> dict[str, Any]:
    """What was measured of a task."""

    def by_cap(wanted: RefineMode) -> dict[int, Sequence[Record]]:
        caps = sorted(cap for cap, mode in plans if cap is not None and mode == wanted)
        return {cap: plans[cap, wanted] for cap in caps}

    drafts, verified, cascaded = by_cap("none"), by_cap("verify"), by_cap("cascade")
    table: dict[str, Any] = {
        "draft": {cap: _expected_accuracy((cap, "none"), found) for cap, found in drafts.items()},
        "refiner": _expected_accuracy((None, "generate"), plans[None, "generate"]),
        "steps_used": {
            cap: round(float(np.mean([record.steps for record in found])), 2)
            for cap, found in drafts.items()
        },
    }
    if verified:
        table["agreement"] = {cap: _agreement(found) for cap, found in verified.items()}
    if cascaded:
        table["cascade"] = {
            c: _expected_accuracy((c, "cascade"), found) for c, found in cascaded.items()
        }
    return table


def _front(plans: Mapping[Plan, Sequence[Record]]) -> list[Plan]:
    """The Pareto front of expected accuracy and median latency, the fastest first."""

    def quality(plan: Plan) -> float:
        return _expected_accuracy(plan, plans[plan])

    front: list[Plan] = []
    for plan in sorted(plans, key=lambda plan: (_median_s(plans[plan]), -quality(plan))):
        if not front or quality(plan) > quality(front[-1]):
            front.append(plan)
    return front


def _allowed(
    front: Sequence[Plan], plans: Mapping[Plan, object]
) -> tuple[list[RefineMode], list[int]]:
    """The modes and caps on steps that the planner may combine: every combination was measured.

    A cap that some mode was not measured with is replaced by the next smaller one that all were:
    drafts stop when they converge, so under a large cap they are nearly those of a smaller one.
    """
    modes = list(dict.fromkeys(mode for _, mode in front))
    caps = sorted({cap for cap, _ in front if cap is not None})
    drafting = [mode for mode in modes if mode != "generate"]
    measured = {cap for cap, _ in plans if cap is not None}
    whole = {cap for cap in measured if all((cap, mode) in plans for mode in drafting)}
    kept = {max(smaller) for cap in caps if (smaller := [one for one in whole if one <= cap])}
    if not kept:
        return [mode for mode in modes if mode in ("none", "generate")], caps
    return modes, sorted(kept)


def _threshold(verified: Sequence[Record]) -> float | None:
    """The least log-probability at which taking drafts is most accurate; of equals, the lowest.

    A verified record has both: the draft with its least likely token, and the refiner's answer.
    """
    known = [
        (record.min_logprob, bool(record.was_right), record.is_right)
        for record in verified
        if record.min_logprob is not None
    ]
    if not any(right or mended for _, right, mended in known):
        return None  # any threshold would do, and none is supported by an answer
    candidates = sorted({min(0.0, math.floor(100 * least) / 100) for least, _, _ in known})

    def accuracy(threshold: float) -> float:
        return sum(draft if least >= threshold else mended for least, draft, mended in known)

    return max(candidates, key=lambda threshold: (accuracy(threshold), -threshold))


def _agreement(records: Sequence[Record]) -> float:
    """The share of drafts that the refiner kept."""
    shares = [(r.accepted_tokens or 0) / r.draft_tokens for r in records if r.draft_tokens]
    return round(float(np.clip(np.mean(shares), 0, 1)), 4) if shares else 0.0


def _expected_accuracy(plan: Plan, records: Sequence[Record]) -> float:
    """The accuracy of a plan, shrunk towards its prior."""
    right = sum(record.score or 0.0 for record in records)
    # without measurements, no plan is expected to be better than the refiner
    prior = min(prior_quality(*plan), prior_quality(None, "generate"))
    return round((right + _PRIOR * prior) / (len(records) + _PRIOR), 4)


def _median_s(records: Sequence[Record]) -> float:
    return float(np.median([record.seconds for record in records]))


def _say(plan: Plan, records: Sequence[Record]) -> str:
    right = 100 * float(np.mean([record.score or 0.0 for record in records]))
    return f"{plan_label(*plan)} ({right:.0f} %, {1e3 * _median_s(records):.0f} ms)"


def _model(role: str, results: Results) -> dict[str, Any] | None:
    """What names a model of the experiment, without a server's settings where there is none."""
    used = [condition["policy"]["models"][role] for condition in results.manifest["conditions"]]
    model = next((one for one in used if one is not None), None)
    if model is None or model["backend"] == "vllm":
        return model
    return {"backend": model["backend"], "model": model["model"]}
