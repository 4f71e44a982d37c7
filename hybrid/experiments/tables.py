"""The tables of a report: metrics of every policy, and the best policies under a constraint.

Rows map a column's name to text; a column without any value is left out.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hybrid.deadline import format_duration
from hybrid.experiments.fit import Fitted
from hybrid.experiments.preset_comparison import PresetComparison, PresetComparisons
from hybrid.experiments.statistics import Comparison
from hybrid.experiments.summary import Results, Summary, pareto

Row = Mapping[str, str]
_QUALITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_NONE = "–"  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class Table:
    """A title, a sentence for the reader, rows that all have the same columns, and what follows."""

    title: str
    note: str
    rows: Sequence[Row]
    lines: Sequence[str] = ()

    @property
    def columns(self) -> list[str]:
        """Those that say something."""
        names = [*self.rows[0]] if self.rows else []
        return [name for name in names if any(row[name] != _NONE for row in self.rows)]


def best_under(summaries: Sequence[Summary]) -> Table:
    """The most accurate policy whose p95 is below a limit; limits that change nothing left out."""
    rows: list[Row] = []
    best: Summary | None = None
    scored = [one for one in summaries if one.is_known]
    for limit in sorted({_round_up(one.p95_s) for one in scored}):
        within = [one for one in scored if one.p95_s <= limit]
        found = max(within, key=lambda one: (one.accuracy, -one.p50_s))
        if found != best:
            rows.append(
                {
                    "p95 below": format_duration(limit),
                    "policy": found.condition,
                    "right": _share(found),
                }
            )
        best = found
    return Table("Best policy below a latency", "", rows)


def fastest_above(summaries: Sequence[Summary]) -> Table:
    """The policy with the lowest median latency whose accuracy is at least so much."""
    rows: list[Row] = []
    for quality in _QUALITIES:
        good = [one for one in pareto(summaries) if one.accuracy >= quality]
        if good:
            best = min(good, key=lambda one: one.p50_s)
            rows.append(
                {
                    "right at least": f"{100 * quality:.0f} %",
                    "policy": best.condition,
                    "p50": _time(best.p50_s, best.p50_interval),
                }
            )
    return Table("Fastest policy above a quality", "", rows)


def all_tables(
    results: Results,
    summaries: Mapping[str, Summary],
    compared: Mapping[str, tuple[Comparison, float, float]],
    by_task: Mapping[str, Mapping[str, Summary]],
    aup: Mapping[str, float],
) -> Iterator[Table]:
    """The tables of metrics, one for each question; `aup` is by line of a grid."""
    yield Table(
        "Quality and latency",
        "In time: the share of answers within the policy's budget. Time a right answer: total time "
        "of all answers over the number of right ones.",
        [_quality(one, results) for one in summaries.values()],
    )
    if compared:
        yield Table(
            f"Against {results.manifest['baseline']}",
            "A pair is an item. Gained and lost: items that are right under this policy and wrong "
            "under the baseline, and the reverse. Speedup, mean over items: geometric mean of the "
            "baseline's latency over the policy's; of medians: the ratio of the two medians. "
            "p-values are corrected for the number of policies. p (latency) compares ranks, so a "
            "few much slower items hardly change it.",
            [_against(condition, *found) for condition, found in compared.items()],
        )
    yield Table(
        "Drafting and refining",
        "A pass is a denoising step or a pass of the refiner. Fill: the share of canvas positions "
        "that became answer. Converged: canvases that stopped before the cap on steps. Entropy: "
        "mean of a canvas at its last step, in nats a position. Fixed, harmed: wrong drafts that "
        "refining made right, and the reverse; a guided draft is compared with the unguided one.",
        [_drafting(one) for one in summaries.values()],
        [f"AUP of {line}: {area:.1f}" for line, area in aup.items()],
    )
    yield Table(
        f"{'Right answers' if results.is_right_or_wrong else 'Mean scores'} by task, %",
        "",
        [
            {
                "policy": condition,
                **{
                    task: f"{100 * found[condition].accuracy:.0f}"
                    if condition in found and found[condition].count
                    else _NONE
                    for task, found in by_task.items()
                },
            }
            for condition in summaries
        ],
    )


def fitted_tables(fitted: Fitted, presets: PresetComparisons) -> list[Table]:
    """The choice for every task, and the fitted policy's results on the other half of the items."""
    chosen = [{"task": task, "plans": reason} for task, reason in fitted.reasons.items()]
    return [
        Table(
            "A fitted policy",
            "What hybrid fit chooses on items with an even number: the Pareto front of expected "
            "accuracy and median latency, with the measured values. Expected accuracy is shrunk "
            "towards a prior that counts as two answers, so of plans that were equally often "
            "right, a slower one may stay.",
            chosen,
            [f"warning: {one}" for one in fitted.warnings],
        ),
        Table(
            "The fitted policy against presets",
            "Replayed on items with an odd number, which chose nothing. The fitted policy's budget "
            "has the highest expected accuracy of those whose p95 on even items was at most the "
            "preset's; both p95 in this table are of the odd items. A pair is an item. Intervals "
            "are of 95 % and not corrected for the number of presets.",
            [_preset_row(one) for one in presets.compared],
            presets.verdicts,
        ),
    ]


def _preset_row(one: PresetComparison) -> Row:
    low, high = (100 * bound for bound in one.found.difference_interval)
    short, long = one.ratio_interval
    return {
        "preset": one.name,
        "prompts": str(one.found.pairs),
        "right, %": f"{100 * one.preset.accuracy:.1f}",
        "fitted right, %": f"{100 * one.fitted.accuracy:.1f}",
        "difference, points": f"{100 * one.found.difference:+.1f} ({low:+.1f} to {high:+.1f})",
        "p95": format_duration(one.preset.p95_s),
        "fitted p95": format_duration(one.fitted.p95_s),
        "p95 ratio, fitted over preset": f"{one.ratio:.2f} ({short:.2f} to {long:.2f})",
        "p50": format_duration(one.preset.p50_s),
        "fitted p50": format_duration(one.fitted.p50_s),
        "budget": format_duration(one.budget_s),
    }


def _quality(one: Summary, results: Results) -> Row:
    requests = str(one.count)
    requests += f", {one.failed} failed" if one.failed else ""
    requests += f", {one.unscored} not scored" if one.unscored else ""
    return {
        "policy": one.condition,
        "requests": requests,
        "right" if results.is_right_or_wrong else "mean score": _share(one),
        "p50": _time(one.p50_s, one.p50_interval),
        "p95": _time(one.p95_s, one.p95_interval),
        "in time": _per_cent(one.in_time, 1),
        "time a right answer": format_duration(one.seconds_per_right)
        if math.isfinite(one.seconds_per_right)
        else "never",
        "records": next(
            a["digest"] for a in results.manifest["conditions"] if a["name"] == one.condition
        )[:8],
    }


def _against(condition: str, found: Comparison, p_accuracy: float, p_latency: float) -> Row:
    low, high = found.difference_interval
    slow, fast = found.speedup_interval
    below, above = found.median_speedup_interval
    return {
        "policy": condition,
        "pairs": str(found.pairs),
        "difference, points": (
            f"{100 * found.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        ),
        "gained": str(found.fixes),
        "lost": str(found.harms),
        "p (right)": _p(p_accuracy),
        "speedup, mean over items": f"{found.speedup:.2f} ({slow:.2f} to {fast:.2f})",
        "speedup of medians": f"{found.median_speedup:.2f} ({below:.2f} to {above:.2f})",
        "p (latency)": _p(p_latency),
    }


def _drafting(one: Summary) -> Row:
    drafts = one.fixes + one.harms + one.kept_right + one.kept_wrong
    return {
        "policy": one.condition,
        "steps a canvas": _number(one.steps_per_canvas),
        "converged": _per_cent(one.converged),
        "entropy": _number(one.entropy, 3),
        "fill": _per_cent(one.canvas_fill),
        "refiner passes": _number(one.passes),
        "tokens a pass": _number(one.tokens_per_forward),
        "fixed": str(one.fixes) if drafts else _NONE,
        "harmed": str(one.harms) if drafts else _NONE,
        "stayed right": str(one.kept_right) if drafts else _NONE,
        "stayed wrong": str(one.kept_wrong) if drafts else _NONE,
    }


def _share(one: Summary) -> str:
    if not one.count:
        return _NONE
    low, high = one.accuracy_interval
    return f"{100 * one.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _time(seconds: float, interval: tuple[float, float]) -> str:
    if math.isnan(seconds):
        return _NONE
    low, high = (1e3 * bound for bound in interval)
    digits = 1 if seconds < 0.1 else 0
    return f"{1e3 * seconds:.{digits}f} ms ({low:.{digits}f} to {high:.{digits}f})"


def _round_up(seconds: float) -> float:
    """To the next of 1, 1.5, 2, 3, 5, 7, 10, ..."""
    scale = 10.0 ** math.floor(math.log10(seconds))
    return next(step * scale for step in (1, 1.5, 2, 3, 5, 7, 10) if step * scale >= seconds)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _number(value: float, digits: int = 1) -> str:
    return _NONE if math.isnan(value) else f"{value:.{digits}f}"


def _per_cent(value: float, digits: int = 0) -> str:
    return _NONE if math.isnan(value) else f"{100 * value:.{digits}f} %"
