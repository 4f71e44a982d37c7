"""One page about an experiment: what was compared, what came out, and how sure that is.

The page holds its pictures and needs no network. Numbers come from `summary.json`, which is written
beside it, and each of them from the records with that policy's name.
"""

import base64
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, PackageLoader

from hybrid.deadline import format_duration
from hybrid.experiments.figures import (
    Drawing,
    curves,
    draw,
    fix_harm,
    frontier,
    predictions,
    reliability,
    steps_histogram,
)
from hybrid.experiments.records import Record
from hybrid.experiments.summary import (
    Results,
    Summary,
    area_under_parallelism,
    comparisons,
    pareto,
    read_results,
    summarise,
)

Picture = tuple[str, str, Drawing, tuple[float, float]]  # file, caption, drawing, inches
_STEPS = "max_denoising_steps"
_QUALITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


def write_report(folder: Path) -> Path:
    """`report.html`, `summary.json` and `figures/`; returns the page. Raises CheckpointError."""
    results = read_results(folder)
    summaries = {arm: summarise(arm, records) for arm, records in results.records.items()}
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    pictures = []
    for name, caption, drawing, size in _pictures(results, summaries):
        files = draw(drawing, size, figures / name)
        pictures.append(
            {"caption": caption, **{f.stem.rpartition("-")[2]: _embed(f) for f in files}}
        )
    compared = comparisons(results)
    summary = {
        "policies": {arm: asdict(one) for arm, one in summaries.items()},
        "by_task": {
            task: {
                arm: asdict(summarise(arm, [r for r in records if r.task == task]))
                for arm, records in results.records.items()
            }
            for task in results.tasks
        },
        "against_baseline": {
            arm: {**asdict(one), "p_accuracy_holm": accuracy, "p_latency_holm": latency}
            for arm, (one, accuracy, latency) in compared.items()
        },
        "aup": dict(_parallelism(results, summaries)),
    }
    (folder / "summary.json").write_text(json.dumps(_finite(summary), indent=1) + "\n", "utf-8")
    templates = Environment(loader=PackageLoader("hybrid.experiments", ""), autoescape=True)
    page = templates.get_template("report.html.jinja").render(
        about=results.about,
        results=results,
        pictures=pictures,
        rows=[_row(one, results, compared) for one in summaries.values()],
        under=list(_best_under(summaries)),
        above=list(_fastest_above(summaries)),
        aup=summary["aup"],
        count=len(results.everything),
    )
    file = folder / "report.html"
    file.write_text(page, "utf-8")
    return file


def _pictures(results: Results, summaries: Mapping[str, Summary]) -> Iterator[Picture]:
    """The pictures that the experiment has data for."""
    groups = {
        group: [(_label(results, arm), summaries[arm]) for arm in arms]
        for group, arms in results.groups().items()
    }
    yield (
        "frontier", "Right answers against median latency, with 95 % intervals.",
        frontier(groups), (6.4, 4.2),
    )  # fmt: skip
    for group, path, points in _grids(results):
        rows = 1 if len(points) <= 5 else 2
        name = path.split(".")[-1]
        yield (
            f"{group}-{name}".replace(" ", "-"),
            f"{group}: right answers by task against {path}, with 95 % intervals.",
            curves(points, name, is_log=all(x > 0 for one in points.values() for x, _, _ in one)),
            (8.4, 1.2 + 1.6 * rows),
        )  # fmt: skip
    drafted = [r for r in results.everything if r.cap is not None and r.canvases]
    unrefined = [record for record in drafted if record.mode == "none"]
    if unrefined:
        cap, steps = _steps(unrefined)
        rows = 1 if len(steps) <= 5 else 2
        yield (
            "steps", f"Denoising steps that canvases really took, of at most {cap}.",
            steps_histogram(steps, cap), (8.4, 1.2 + 1.5 * rows),
        )  # fmt: skip
    refined = [
        (arm, summaries[arm])
        for arm, records in results.records.items()
        if summaries[arm].fixes + summaries[arm].harms
        or all(record.mode not in ("none", "generate", "score") for record in records)
    ]
    if refined:
        yield (
            "fix-harm", "What refining did to drafts: wrong ones put right, right ones put wrong.",
            fix_harm(refined), (6.4, 1.2 + 0.3 * len(refined)),
        )  # fmt: skip
    judged = [record for record in drafted if record.was_right is not None]
    if len(judged) >= 20:
        yield (
            "reliability", "Whether a draft's certainty tells right from wrong; equal bins.",
            reliability(judged), (5.2, 4.2),
        )  # fmt: skip
    yield (
        "predictions", "What the planner predicted, and what the requests took.",
        predictions(results.everything), (4.8, 4.4),
    )  # fmt: skip


def _grids(
    results: Results,
) -> Iterator[tuple[str, str, dict[str, list[tuple[float, int, int]]]]]:
    """Every grid over one numeric field: group, path, and (value, right, count) by task."""
    for group, arms in results.groups().items():
        paths = {path for arm in arms for path in results.values(arm)}
        if len(paths) != 1 or len(arms) < 2:
            continue
        (path,) = paths
        found: dict[str, list[tuple[float, int, int]]] = defaultdict(list)
        for arm in arms:
            value = results.values(arm)[path]
            if isinstance(value, bool) or not isinstance(value, int | float):
                break
            for task in results.tasks:
                here = [r for r in results.records[arm] if r.task == task and r.score is not None]
                if here:
                    found[task].append((value, sum(r.is_right for r in here), len(here)))
        else:
            yield group, path, {task: sorted(points) for task, points in found.items()}


def _steps(records: Sequence[Record]) -> tuple[int, dict[str, list[int]]]:
    """The largest of the caps that the most tasks were drafted with, and their canvases' steps."""
    tasks: dict[int, set[str]] = defaultdict(set)
    for record in records:
        tasks[record.cap or 0].add(record.task)
    cap = max(tasks, key=lambda one: (len(tasks[one]), one))
    steps: dict[str, list[int]] = defaultdict(list)
    for record in {record.key: record for record in records if record.cap == cap}.values():
        steps[record.task] += [canvas[0] for canvas in record.canvases]
    return cap, steps


def _label(results: Results, arm: str) -> str:
    """A policy's short name beside its point: what the grid set."""
    return ", ".join(str(value) for value in results.values(arm).values())


def _parallelism(results: Results, summaries: Mapping[str, Summary]) -> Iterator[tuple[str, float]]:
    """AUP of every grid over denoising steps."""
    for group, arms in results.groups().items():
        if len(arms) > 1 and all(_STEPS in path for arm in arms for path in results.values(arm)):
            points = [(summaries[a].tokens_per_forward, 100 * summaries[a].accuracy) for a in arms]
            yield group, area_under_parallelism(points)


def _row(
    one: Summary, results: Results, compared: Mapping[str, tuple[object, float, float]]
) -> dict[str, str]:
    """A policy's row in the table, as text."""
    low, high = one.accuracy_interval
    row = {
        "policy": one.arm,
        "digest": next(a["digest"] for a in results.about["arms"] if a["name"] == one.arm),
        "requests": str(one.count),
        "right": f"{100 * one.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})",
        "p50": f"{format_duration(one.p50_s)}",
        "p95": f"{format_duration(one.p95_s)}",
        "in time": f"{100 * one.in_time:.1f} %",
        "steps": _number(one.steps_per_canvas),
        "passes": _number(one.passes),
        "tokens a pass": _number(one.tokens_per_forward),
        "fill": "-" if math.isnan(one.canvas_fill) else f"{100 * one.canvas_fill:.0f} %",
        "fixed": str(one.fixes),
        "harmed": str(one.harms),
        "time a right answer": format_duration(one.seconds_per_right),
        "against the baseline": "the baseline",
    }
    found = compared.get(one.arm)
    if found is not None:
        row["against the baseline"] = _against(*found)
    if one.failed or one.unjudged:
        row["requests"] += f", {one.failed} failed, {one.unjudged} not judged"
    return row


def _against(comparison: object, p_accuracy: float, p_latency: float) -> str:
    from hybrid.experiments.statistics import Comparison

    assert isinstance(comparison, Comparison)
    low, high = comparison.difference_interval
    slow, fast = comparison.speedup_interval
    return (
        f"{100 * comparison.difference:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}, "
        f"p {_p(p_accuracy)}); {comparison.speedup:.2f} x as fast ({slow:.2f} to {fast:.2f}, "
        f"p {_p(p_latency)})"
    )


def _best_under(summaries: Mapping[str, Summary]) -> Iterator[tuple[str, str, str]]:
    """The most accurate policy whose p95 is below a limit."""
    limits = sorted({_round_up(one.p95_s) for one in summaries.values()})
    for limit in limits:
        within = [one for one in summaries.values() if one.p95_s <= limit]
        if within:
            best = max(within, key=lambda one: (one.accuracy, -one.p50_s))
            yield format_duration(limit), best.arm, f"{100 * best.accuracy:.1f} %"


def _fastest_above(summaries: Mapping[str, Summary]) -> Iterator[tuple[str, str, str]]:
    """The policy with the lowest median latency whose accuracy is at least so much."""
    for quality in _QUALITIES:
        good = [one for one in pareto([*summaries.values()]) if one.accuracy >= quality]
        if good:
            best = min(good, key=lambda one: one.p50_s)
            yield f"{100 * quality:.0f} %", best.arm, format_duration(best.p50_s)


def _round_up(seconds: float) -> float:
    """To the next of 1, 1.5, 2, 3, 5, 7, 10, ..."""
    scale = 10.0 ** math.floor(math.log10(seconds))
    return next(step * scale for step in (1, 1.5, 2, 3, 5, 7, 10) if step * scale >= seconds)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _embed(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
