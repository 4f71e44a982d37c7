"""A fitted policy compared with every preset, on the half of the items that chose nothing.

The comparison is at equal p95. On the half that chooses, the fitted policy gets the budget with the
highest expected accuracy among those whose p95 is at most the preset's. The expected accuracy is
used and not the measured one, because a plan may have been right on all of a few items by chance.
On the half that reports, both p95 are reported as measured, with an interval of their ratio.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybrid.experiments.fit import Fitted, halves
from hybrid.experiments.records import Record
from hybrid.experiments.replay import PairKey, Replayed, find_paces, replay_records
from hybrid.experiments.statistics import (
    LEVEL,
    Comparison,
    Interval,
    bootstrap_quantile_ratio,
    compare,
    detectable_difference,
    mcnemar,
)
from hybrid.experiments.summary import Results
from hybrid.policies.loader import load_policy, parse_policy, preset_names
from hybrid.policies.schema import Policy

_BUDGETS = 24  # tried, from half the lowest p95 of a preset to ten times the highest
# By budget (s): expected accuracy and measured p95 (s).
Curve = Mapping[float, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One policy over the compared requests. Durations are seconds.

    `missing` counts requests by the plan that was never run for them.
    """

    accuracy: float
    p50_s: float
    p95_s: float
    missing: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PresetComparison:
    """A preset and the fitted policy on the items that chose nothing.

    `budget_s` is the fitted policy's. `requests` counts those that both have an answer for.
    `found` compares accuracy item by item, fitted minus preset; `by_task` is the difference by
    task. `ratio` is the fitted policy's p95 over the preset's. Intervals resample whole items.
    """

    name: str
    budget_s: float
    preset: Outcome
    fitted: Outcome
    requests: int
    found: Comparison
    by_task: Mapping[str, float]
    ratio: float
    ratio_interval: Interval

    @property
    def is_better(self) -> bool:
        """Whether its accuracy is higher, and its p95 is not shown to be higher."""
        return self.found.difference_interval[0] > 0 and self.ratio_interval[0] <= 1

    @property
    def verdict(self) -> str:
        """Whether the fitted policy is better at this p95, and if not, why."""
        low, high = self.ratio_interval
        ratio = f"p95 is {self.ratio:.2f} times the preset's ({low:.2f} to {high:.2f})"
        if low > 1:
            return f"slower, not compared at equal p95: {ratio}; otherwise {self._accuracy}"
        if self.ratio > 1:
            return f"{self._accuracy}; {ratio}, which includes 1"
        return f"{self._accuracy}; {ratio}{', faster' if high < 1 else ''}"

    @property
    def _accuracy(self) -> str:
        low, high = self.found.difference_interval
        items, fixes, harms = self.found.pairs, self.found.fixes, self.found.harms
        wrong = round(items * (1 - self.preset.accuracy))
        if low > 0:
            return "better"
        if high < 0:
            return f"worse{self._losses}: the choice does not generalise from the first half"
        if not fixes + harms:
            return f"equal: no item of {items} differs, and {wrong} are wrong under both"
        said = f"no significant difference: {fixes} items gained, {harms} lost{self._losses}"
        if mcnemar(wrong, 0) > 1 - LEVEL:
            return f"{said}; the preset is wrong on {wrong} of {items}, too few to improve on"
        least = 100 * detectable_difference(items)
        return f"{said}; {items} items can show differences from about {least:.0f} points"

    @property
    def _losses(self) -> str:
        worst = sorted(self.by_task.items(), key=lambda one: one[1])[:2]
        lost = [f"{task} {100 * change:+.0f}" for task, change in worst if change < 0]
        return f" ({', '.join(lost)} points)" if lost else ""


@dataclass(frozen=True, slots=True)
class PresetComparisons:
    """Every preset: those compared, and for the others the plans that were never run."""

    compared: Sequence[PresetComparison]
    unmatched: Mapping[str, Mapping[str, int]]

    @property
    def verdicts(self) -> list[str]:
        """One sentence for each preset, and the plans that are missing."""
        lines = [f"{one.name}: fitted is {one.verdict}" for one in self.compared]
        for one in self.compared:
            for who, outcome in (("", one.preset), ("fitted, ", one.fitted)):
                lines += [f"{one.name}: {who}{_unrun(outcome.missing)}"] if outcome.missing else []
        return lines + [
            f"{name}: not compared, no request has an answer under both; {_unrun(missing)}"
            for name, missing in self.unmatched.items()
        ]


def compare_with_presets(results: Results, fitted: Fitted) -> PresetComparisons:
    """The fitted policy against every preset; the second half of the items is only reported on."""
    chosen_by, held_out = halves(results.everything)
    presets = {name: as_preset(name, fitted) for name in preset_names()}
    paces, held_paces = (find_paces(results, half) for half in (chosen_by, held_out))
    before = {
        name: replay_records(results, chosen_by, preset, paces) for name, preset in presets.items()
    }
    limits = {name: found.latency(0.95) for name, found in before.items() if found.scores}
    curve = _curve(results, fitted, chosen_by, [*limits.values()], paces)
    compared: list[PresetComparison] = []
    unmatched: dict[str, Mapping[str, int]] = {}
    for name, preset in presets.items():
        its = replay_records(results, held_out, preset, held_paces)
        if not (its.scores and curve) or name not in limits:
            unmatched[name] = its.missing
            continue
        budget = equal_budget(limits[name], curve)
        mine = replay_records(results, held_out, within(fitted, budget), held_paces)
        if set(its.keys) & set(mine.keys):
            compared.append(_compare(name, budget, its, mine))
        else:
            unmatched[name] = its.missing + mine.missing
    return PresetComparisons(compared, unmatched)


def as_preset(name: str, fitted: Fitted) -> Policy:
    """A preset, with the experiment's models in place of the embedded ones."""
    used = load_policy(name).models
    models = {
        role: model
        for role, model in fitted.values["models"].items()
        if getattr(used, role) is not None
    }
    return parse_policy(json.dumps({"version": 1, "extends": name, "models": models}), name)


def within(fitted: Fitted, budget_s: float) -> Policy:
    """The fitted policy with a budget."""
    budget = {"defaults": {"budget": f"{1e6 * budget_s:.0f}us"}}
    return parse_policy(json.dumps({**fitted.values, **budget}), "fitted")


def equal_budget(limit_s: float, curve: Curve) -> float:
    """The budget with the highest expected accuracy and a p95 of at most the limit, in seconds.

    Of equals the one with the lowest p95; where all are above the limit, that as well.
    """
    allowed = {budget: found for budget, found in curve.items() if found[1] <= limit_s}
    if not allowed:
        return min(curve, key=lambda budget: curve[budget][1])
    return max(allowed, key=lambda budget: (allowed[budget][0], -allowed[budget][1]))


def _curve(
    results: Results,
    fitted: Fitted,
    chosen_by: Sequence[Record],
    limits: Sequence[float],
    paces: Mapping[PairKey, float],
) -> Curve:
    """The fitted policy under budgets around the presets' p95."""
    curve = {}
    for budget in np.geomspace(0.5 * min(limits), 10 * max(limits), _BUDGETS) if limits else ():
        found = replay_records(results, chosen_by, within(fitted, float(budget)), paces)
        if found.scores:
            curve[float(budget)] = float(np.mean(found.qualities)), found.latency(0.95)
    return curve


def _compare(name: str, budget_s: float, preset: Replayed, fitted: Replayed) -> PresetComparison:
    """Over the requests that both have an answer for."""
    rows = {key: row for row, key in enumerate(preset.keys)}
    both = [(row, rows[key]) for row, key in enumerate(fitted.keys) if key in rows]
    mine, its = ([pair[side] for pair in both] for side in (0, 1))
    items = [fitted.keys[row][:2] for row in mine]
    scores, its_scores = np.array(fitted.scores)[mine], np.array(preset.scores)[its]
    seconds, its_seconds = np.array(fitted.seconds)[mine], np.array(preset.seconds)[its]
    tasks = np.array([task for task, _ in items])
    gained = scores - its_scores
    one, other = _outcome(scores, seconds, fitted), _outcome(its_scores, its_seconds, preset)
    return PresetComparison(
        name=name,
        budget_s=budget_s,
        preset=other,
        fitted=one,
        requests=len(both),
        found=compare(items, scores, seconds, its_scores, its_seconds),
        by_task={str(task): float(gained[tasks == task].mean()) for task in np.unique(tasks)},
        ratio=one.p95_s / other.p95_s,
        ratio_interval=bootstrap_quantile_ratio(seconds, its_seconds, 0.95, items),
    )


def _unrun(missing: Mapping[str, int]) -> str:
    plans = ", ".join(f"{plan} ({count} requests)" for plan, count in missing.items())
    return f"never run: {plans}"


def _outcome(scores: NDArray[np.float64], seconds: NDArray[np.float64], found: Replayed) -> Outcome:
    p50, p95 = np.quantile(seconds, (0.5, 0.95))
    return Outcome(float(scores.mean()), float(p50), float(p95), dict(found.missing))
