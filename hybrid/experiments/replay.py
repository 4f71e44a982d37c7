"""What another policy would have answered, from recorded answers; no model runs.

For every recorded prompt the policy decides with the latency model that the run had learned and the
machine's pace at that moment: a tight budget allows less where the machine was slow. The recorded
answer of the same settings is its answer, or one derived from another (`derive`). Settings that
were never run are counted as missing.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from hybrid.experiments.derive import find
from hybrid.experiments.plan_settings import plan_settings
from hybrid.experiments.records import Record, settings_key
from hybrid.experiments.runner import history_path, models_key
from hybrid.experiments.statistics import Interval, share_interval
from hybrid.experiments.summary import Results, read_results
from hybrid.policies.history import History, cost_of_parts
from hybrid.policies.latency import LatencyModel
from hybrid.policies.measurements import costs_from_json
from hybrid.policies.planner import plan
from hybrid.policies.quality import read_quality
from hybrid.policies.schema import Policy
from hybrid.policies.signals import gather
from hybrid.policies.slowdown import SlowdownEstimator
from hybrid.requests import make_request
from hybrid.types import DraftParams, Plan, RefineMode

PairKey = tuple[str, int, int, int]  # see `Record.pair_key`


@dataclass(frozen=True, slots=True)
class Replayed:
    """A policy's scores and seconds by request, its plans, and the plans that nobody has run.

    `predicted` are the medians and `qualities` the accuracies that the planner expected; `late`
    counts answers that were recorded in a longer time than the policy's budget, `derived` those
    worked out of others. `settings` are those of the missing plans, by label.
    """

    keys: Sequence[PairKey]
    scores: Sequence[float]
    seconds: Sequence[float]
    predicted: Sequence[float]
    qualities: Sequence[float]
    plans: Counter[str]
    missing: Counter[str]
    settings: Mapping[str, Mapping[str, Any]]
    late: int
    derived: int

    @property
    def accuracy(self) -> float:
        """Mean score of what was found."""
        return sum(self.scores) / len(self.scores)

    @property
    def in_time(self) -> float:
        """The share of what was found that kept the policy's budget."""
        return 1 - self.late / len(self.scores)

    @property
    def interval(self) -> Interval:
        """Of the accuracy."""
        return share_interval([key[:2] for key in self.keys], self.scores)

    def latency(self, share: float) -> float:
        """A quantile of the seconds."""
        return float(np.quantile(self.seconds, share))


def replay_policy(folder: Path, policy: Policy) -> Replayed:
    """A policy over everything that a folder holds; raises CheckpointError."""
    results = read_results(folder)
    return replay_records(results, results.everything, policy)


def replay_records(
    results: Results,
    records: Sequence[Record],
    policy: Policy,
    paces: Mapping[PairKey, float] | None = None,
) -> Replayed:
    """A policy over the prompts of these records.

    `paces` are those of `find_paces`, if they are known already.
    """
    if paces is None:
        paces = find_paces(results, records)
    by_pair: dict[PairKey, dict[str, Record]] = defaultdict(dict)
    for record in records:
        usable = record.settings is not None and record.finish_reason != "budget"
        if usable and record.score is not None and record.error is None:
            assert record.settings is not None
            by_pair[record.pair_key].setdefault(settings_key(record.settings), record)
    latency = _latency(results, policy)
    keys, scores, seconds, predicted, qualities = [], [], [], [], []
    plans: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    wanted: dict[str, Mapping[str, Any]] = {}
    late = derived = 0
    for key, conditions in by_pair.items():
        now = replace(latency, slowdown=paces.get(key, 1.0))
        decision = decide(next(iter(conditions.values())), policy, now)
        plans[decision.label] += 1
        settings = plan_settings(decision, policy)
        found = find(conditions, settings)
        if found is None or found.score is None:
            missing[decision.label] += 1
            wanted[decision.label] = settings
            continue
        keys.append(key)
        scores.append(found.score)
        seconds.append(found.seconds)
        predicted.append(decision.predicted.latency_p50_s)
        qualities.append(decision.predicted.quality)
        late += decision.budget_s is not None and found.seconds > decision.budget_s
        derived += settings_key(found.settings or {}) != settings_key(settings)
    return Replayed(
        keys, scores, seconds, predicted, qualities, plans, missing, wanted, late, derived
    )


def find_paces(results: Results, records: Sequence[Record]) -> dict[PairKey, float]:
    """The machine's pace when each of these was first made, followed as the planner does.

    A request's own pace is what it took over what its steps and tokens cost, relative to the median
    of its plan on its task; that, relative to what the run's planner took for usual of its mode.
    """
    known = _costs(results)
    key = _fullest(known)
    costs, file = known[key], history_path(results.folder, key)
    history = History(costs, file, archived=True)
    answered = [r for r in records if r.settings is not None and r.seconds > 0]
    different = sorted({r.key: r for r in answered}.values(), key=lambda record: record.started)
    logs = [math.log(record.seconds / _cost(costs, record)) for record in different]
    kinds: dict[tuple[str, str], list[float]] = defaultdict(list)
    modes: dict[str, list[float]] = defaultdict(list)
    for record, log_pace in zip(different, logs, strict=True):
        kinds[_kind(record)].append(log_pace)
        modes[record.mode].append(log_pace)
    usual = {kind: float(np.median(found)) for kind, found in kinds.items()}
    later = {
        mode: float(np.median(found)) - history.usual_slowdown(cast(RefineMode, mode))
        for mode, found in modes.items()
    }
    pace = SlowdownEstimator(different[0].started if different else 0.0)
    paces: dict[PairKey, float] = {}
    for record, log_pace in zip(different, logs, strict=True):
        paces.setdefault(record.pair_key, pace.at(record.started))
        error = log_pace - usual[_kind(record)] + later[record.mode]
        pace.follow(error, record.started + record.seconds)
    return paces


def _kind(record: Record) -> tuple[str, str]:
    """Equal for requests that should take the same, but for their own steps and tokens."""
    return settings_key(record.settings or {}), record.task


def _cost(costs: LatencyModel, record: Record) -> float:
    return cost_of_parts(
        costs,
        prompt_tokens=record.prompt_tokens,
        draft_tokens=record.draft_tokens,
        canvases=len(record.canvases),
        steps=sum(steps for steps, _, _ in record.canvases),
        scored_by_itself=False,  # the same for all of a kind
        passes=record.passes,
    )


def decide(record: Record, policy: Policy, latency: LatencyModel) -> Plan:
    """What the policy decides for a recorded prompt."""
    from hybrid.embedded import EVALUATION
    from hybrid.embedded.tasks import length_hint, recognise

    chosen = policy.models
    is_embedded = all(
        model is None or model.model == "embedded" for model in (chosen.drafter, chosen.refiner)
    )
    task = record.task if record.task in policy.tasks else None
    question = list(record.messages) or record.prompt
    request = make_request(question, {"task": task, "seed": record.seed})
    signals = gather(
        request,
        prompt_tokens=record.prompt_tokens,
        blank_tokens=0,
        recognise=recognise if is_embedded else None,
        policy=policy,
        custom={},
        load=0,
        length_hint=length_hint(record.prompt) if is_embedded else 0,
    )
    known = read_quality(EVALUATION) if is_embedded else {}
    return plan(request, signals, policy, latency, {**known, **policy.quality})


def as_policy(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The shortest inline policy that makes a plan of these settings, as an experiment names it."""
    usual = DraftParams()
    said = {k: v for k, v in (settings["draft"] or {}).items() if v != getattr(usual, k)}
    refine = {name: value for name, value in settings["refine"].items() if value is not None}
    draft = {"max_denoising_steps": usual.max_denoising_steps, **said}
    return {"defaults": {**({"draft": draft} if settings["draft"] else {}), "refine": refine}}


def _latency(results: Results, policy: Policy) -> LatencyModel:
    """What the run knew of the machine and of the tasks' work, at a pace of 1.

    Of other models than the policy's, where the policy's were not run: a policy of one of two
    models decides alike.
    """
    known = _costs(results)
    key = models_key(policy)
    if key not in known:
        key = _fullest(known)
    return History(known[key], history_path(results.folder, key), archived=True).latency


def _costs(results: Results) -> dict[str, LatencyModel]:
    return {key: costs_from_json(values) for key, values in results.manifest["costs"].items()}


def _fullest(known: Mapping[str, LatencyModel]) -> str:
    """The models with both a drafter and a refiner, if there are any."""
    return max(known, key=lambda one: (known[one].step_s > 0) + (known[one].token_s > 0))
