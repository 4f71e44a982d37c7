"""Quality, latency and diffusion metrics of every policy, computed from an experiment's records.

Answers that a scorer could not score are left out; requests that failed count as wrong.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hybrid import __version__
from hybrid.experiments.derive import with_plain_drafts
from hybrid.experiments.records import Record, read_manifest, read_records
from hybrid.experiments.statistics import (
    Comparison,
    Interval,
    bootstrap_quantile,
    compare,
    holm,
    share_interval,
)

_DROPPED = 5.0  # points of accuracy below the first point, beyond which AUP does not count


@dataclass(frozen=True, slots=True)
class Summary:
    """One policy, over some records. Durations are seconds.

    `tokens_per_forward` counts denoising steps and the refiner's passes alike; `canvas_fill` is the
    share of canvas positions that drafts filled; `seconds_per_right` is the time spent for each
    right answer.
    """

    condition: str
    count: int
    accuracy: float
    accuracy_interval: Interval
    p50_s: float
    p50_interval: Interval
    p95_s: float
    p95_interval: Interval
    in_time: float
    steps_per_canvas: float
    tokens_per_forward: float
    canvas_fill: float
    converged: float
    entropy: float
    passes: float
    fixes: int
    harms: int
    kept_right: int
    kept_wrong: int
    seconds_per_right: float
    failed: int
    unscored: int

    @property
    def is_known(self) -> bool:
        """Whether anything was answered and scored; if not, most numbers are nan."""
        return self.count > self.failed and math.isfinite(self.p50_s)


@dataclass(frozen=True, slots=True)
class Results:
    """An experiment's folder, read: `records` by policy, in the file's order of policies.

    Records of other versions of hybrid, and of policies, items or seeds that the experiment no
    longer has, are counted and left out.
    """

    folder: Path
    manifest: Mapping[str, Any]
    records: Mapping[str, Sequence[Record]]
    of_other_versions: int
    outdated: int

    @property
    def machines(self) -> list[str]:
        """What the requests were made on."""
        return sorted({record.hardware for record in self.everything})

    @property
    def everything(self) -> list[Record]:
        """All records."""
        return [record for records in self.records.values() for record in records]

    @property
    def is_right_or_wrong(self) -> bool:
        """Whether every score is 0 or 1; if not, accuracies are mean scores."""
        return all(record.score in (0, 1, None) for record in self.everything)

    @property
    def tasks(self) -> list[str]:
        """Tasks in the order of the records."""
        return list(dict.fromkeys(record.task for record in self.everything))

    def values(self, condition: str) -> Mapping[str, Any]:
        """What the grid set in a policy."""
        found = next(one for one in self.manifest["conditions"] if one["name"] == condition)
        values: Mapping[str, Any] = found["values"]
        return values

    def groups(self) -> dict[str, list[str]]:
        """Policies by the name that they have in the file."""
        found: dict[str, list[str]] = defaultdict(list)
        for condition in self.manifest["conditions"]:
            if condition["name"] in self.records:
                found[condition["group"]].append(condition["name"])
        return dict(found)


def read_results(folder: Path) -> Results:
    """Everything recorded in a folder by this version; policies that say the same share records."""
    manifest, records = read_manifest(folder), read_records(folder)
    names_by_digest: dict[str, list[str]] = defaultdict(list)
    for condition in manifest["conditions"]:
        names_by_digest[condition["digest"]].append(condition["name"])
    by_condition: dict[str, list[Record]] = {
        condition["name"]: [] for condition in manifest["conditions"]
    }
    current = [record for record in records if record.version == __version__]
    known = with_plain_drafts([record for record in current if _is_asked_for(record, manifest)])
    for record in known:
        for name in names_by_digest[record.policy]:
            by_condition[name].append(record)
    found = {name: kept for name, kept in by_condition.items() if kept}
    return Results(folder, manifest, found, len(records) - len(current), len(current) - len(known))


def _is_asked_for(record: Record, manifest: Mapping[str, Any]) -> bool:
    """Whether the experiment as it is now would make this request."""
    items, wanted = manifest["items"].get(record.task, ()), manifest["experiment"]
    return (
        any(condition["digest"] == record.policy for condition in manifest["conditions"])
        and record.item < len(items)
        and items[record.item] == record.item_digest
        and record.seed in wanted["seeds"]
        and record.repeat < wanted["repeats"]
    )


def summarise(condition: str, records: Sequence[Record]) -> Summary:
    """The metrics of one policy."""
    scored = [record for record in records if record.score is not None or record.error]
    scores = [record.score or 0.0 for record in scored]
    answered = [record for record in records if not record.error]
    seconds = [record.seconds for record in answered]
    drafts = [record for record in answered if record.canvases]
    canvases = [canvas for record in drafts for canvas in record.canvases]
    pairs = [(record.was_right, record.is_right) for record in drafts if record.score is not None]
    forwards = sum(record.steps + record.passes for record in answered)
    positions = sum(len(record.canvases) * record.canvas_length for record in drafts)
    asked = [record.pair_key[:2] for record in answered]
    right = sum(score >= 1 for score in scores)
    return Summary(
        condition=condition,
        count=len(scored),
        accuracy=_mean(scores),
        accuracy_interval=share_interval([record.pair_key[:2] for record in scored], scores),
        p50_s=_quantile(seconds, 0.5),
        p50_interval=bootstrap_quantile(seconds, 0.5, asked),
        p95_s=_quantile(seconds, 0.95),
        p95_interval=bootstrap_quantile(seconds, 0.95, asked),
        in_time=_mean([record.in_time for record in answered]),
        steps_per_canvas=_mean([steps for steps, _, _ in canvases]),
        tokens_per_forward=sum(record.tokens for record in answered) / max(1, forwards),
        canvas_fill=sum(r.draft_tokens for r in drafts) / positions if positions else math.nan,
        converged=_mean([converged for _, converged, _ in canvases]),
        entropy=_mean([entropy for _, _, entropy in canvases]),
        passes=_mean([record.passes for record in answered]),
        fixes=pairs.count((False, True)),
        harms=pairs.count((True, False)),
        kept_right=pairs.count((True, True)),
        kept_wrong=pairs.count((False, False)),
        seconds_per_right=sum(seconds) / right if right else math.inf,
        failed=len(records) - len(answered),
        unscored=len(records) - len(scored),
    )


def comparisons(results: Results) -> dict[str, tuple[Comparison, float, float]]:
    """Every policy against the baseline; the p-values of accuracy and latency corrected by Holm."""
    base = {
        record.pair_key: record for record in results.records.get(results.manifest["baseline"], ())
    }
    found: dict[str, Comparison] = {}
    for condition, records in results.records.items():
        pairs = [
            (record, base[record.pair_key])
            for record in records
            if record.pair_key in base and record.score is not None
        ]
        pairs = [pair for pair in pairs if pair[1].score is not None]
        if condition == results.manifest["baseline"] or len(pairs) < 2:
            continue
        found[condition] = compare(
            [record.pair_key[:2] for record, _ in pairs],
            [record.score or 0.0 for record, _ in pairs],
            [record.seconds for record, _ in pairs],
            [other.score or 0.0 for _, other in pairs],
            [other.seconds for _, other in pairs],
        )
    accuracy = holm([one.p_accuracy for one in found.values()])
    latency = holm([one.p_latency for one in found.values()])
    return {
        condition: (one, accuracy[index], latency[index])
        for index, (condition, one) in enumerate(found.items())
    }


def pareto(summaries: Sequence[Summary]) -> list[Summary]:
    """The Pareto front of accuracy and median latency, the fastest first; policies of which nothing
    could be scored are left out.
    """
    front: list[Summary] = []
    known = [one for one in summaries if one.is_known]
    for one in sorted(known, key=lambda summary: (summary.p50_s, -summary.accuracy)):
        if not front or one.accuracy > front[-1].accuracy:
            front.append(one)
    return front


def area_under_parallelism(points: Sequence[tuple[float, float]]) -> float:
    """AUP of (tokens a forward, accuracy in per cent) points (d3LLM, arXiv 2601.07568).

    Accuracy lost against the curve's best counts exponentially; points more than 5 points below the
    first are dropped.
    """
    ordered = sorted(points)
    kept = [point for point in ordered if point[1] >= ordered[0][1] - _DROPPED]
    best = max(y for _, y in kept)
    if best <= 0:
        return 0.0

    def weighted(y: float) -> float:
        return y * min(math.exp(-3 * (1 - y / best)), 1.0)

    area = kept[0][0] * kept[0][1]
    for (before, y0), (rho, y1) in pairwise(kept):
        area += 0.5 * (rho - before) * (weighted(y1) + weighted(y0))
    return area


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(values, share)) if values else math.nan
