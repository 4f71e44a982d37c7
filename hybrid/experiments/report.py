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

from hybrid.errors import CheckpointError
from hybrid.experiments.figures import (
    Change,
    Point,
    curves,
    fix_harm,
    fix_harm_matrix,
    predictions,
    reliability,
    steps_histogram,
)
from hybrid.experiments.frontier import frontier
from hybrid.experiments.records import Record
from hybrid.experiments.summary import (
    Results,
    Summary,
    area_under_parallelism,
    comparisons,
    read_results,
    summarise,
)
from hybrid.experiments.tables import all_tables, best_under, fastest_above
from hybrid.experiments.theme import Drawing, draw

Picture = tuple[str, str, Drawing, tuple[float, float]]  # file, caption, drawing, inches
_STEPS = "max_denoising_steps"
_LEAST_JUDGED = 20  # drafts, for a reliability diagram
_PIXELS = 128  # of the page, for an inch of a picture


def write_report(folder: Path) -> Path:
    """`report.html`, `summary.json` and `figures/`; returns the page. Raises CheckpointError."""
    results = read_results(folder)
    if not results.records:
        raise CheckpointError(str(folder), "has no records of this experiment; run it first")
    summaries = {arm: summarise(arm, records) for arm, records in results.records.items()}
    by_task = {
        task: {
            arm: summarise(arm, found)
            for arm, records in results.records.items()
            if (found := [record for record in records if record.task == task])
        }
        for task in results.tasks
    }
    compared = comparisons(results)
    summary = {
        "policies": {arm: asdict(one) for arm, one in summaries.items()},
        "by_task": {
            task: {arm: asdict(one) for arm, one in found.items()}
            for task, found in by_task.items()
        },
        "against_baseline": {
            arm: {**asdict(one), "p_accuracy_holm": accuracy, "p_latency_holm": latency}
            for arm, (one, accuracy, latency) in compared.items()
        },
        "aup": dict(_parallelism(results, summaries)),
    }
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    pictures = []
    for name, caption, drawing, size in _pictures(results, summaries):
        files = draw(drawing, size, figures / name)
        themes = {file.stem.rpartition("-")[2]: _embed(file) for file in files}
        pictures.append({"caption": caption, "width": round(_PIXELS * size[0]), **themes})
    (folder / "summary.json").write_text(json.dumps(_finite(summary), indent=1) + "\n", "utf-8")
    templates = Environment(loader=PackageLoader("hybrid.experiments", ""), autoescape=True)
    page = templates.get_template("report.html.jinja").render(
        about=results.about,
        results=results,
        machines=[machine.removesuffix(" []") for machine in results.machines],
        pictures=pictures,
        answers=[best_under([*summaries.values()]), fastest_above([*summaries.values()])],
        tables=list(all_tables(results, summaries, compared, by_task)),
        aup=summary["aup"],
        count=len({record.key for record in results.everything}),
    )
    file = folder / "report.html"
    file.write_text(page, "utf-8")
    return file


def _pictures(results: Results, summaries: Mapping[str, Summary]) -> Iterator[Picture]:
    """The pictures that the experiment has data for."""
    chosen = results.about["experiment"].get("frontier") or [*results.groups()]
    groups = {
        group: [(_label(results, arm), summaries[arm]) for arm in arms]
        for group, arms in results.groups().items()
        if group in chosen
    }
    yield (
        "frontier", "Right answers against median latency, with 95 % intervals. Labels are the "
        "values that a policy was varied over.",
        frontier(groups), (8.4, 5.0),
    )  # fmt: skip
    yield from _curves(results, summaries)
    drafted = [r for r in results.everything if r.cap is not None and r.canvases]
    unrefined = [record for record in drafted if record.mode == "none"]
    if unrefined:
        cap, steps = _steps(unrefined)
        rows = 1 if len(steps) <= 5 else 2
        yield (
            "steps", "Denoising steps that canvases really took; dotted: the mean.",
            steps_histogram(steps, cap), (8.4, 1.2 + 1.5 * rows),
        )  # fmt: skip
    yield from _changes(results, summaries)
    judged = [record for record in unrefined if record.was_right is not None]
    if len(judged) >= _LEAST_JUDGED:
        rows = -(-(1 + len({record.task for record in judged})) // 4)
        yield (
            "reliability", "Whether a draft's certainty at commit tells right from wrong: drafts "
            "of all policies that did not refine them, in bins of equal counts with intervals, "
            "and the expected calibration error (ECE).",
            reliability(judged), (8.4, 0.8 + 1.75 * rows),
        )  # fmt: skip
    yield (
        "predictions", "What the planner predicted, and what the requests took.",
        predictions(results.everything), (6.4, 5.2),
    )  # fmt: skip


def _curves(results: Results, summaries: Mapping[str, Summary]) -> Iterator[Picture]:
    """Quality over every numeric field that a grid went over, all its grids in one picture."""
    baseline = results.about["baseline"]
    alone = {
        task: summarise(baseline, found).accuracy
        for task in results.tasks
        if (found := [r for r in results.records.get(baseline, ()) if r.task == task])
    }
    pictures: dict[str, dict[str, dict[str, list[Point]]]] = {}
    for group, path, by_task in _grids(results):
        for task, points in by_task.items():
            pictures.setdefault(path, {}).setdefault(task, {})[group] = points
    for path, lines in pictures.items():
        name = path.split(".")[-1]
        rows = -(-len(lines) // 5)
        is_varied = any(baseline in arms for arms in results.groups().values() if len(arms) > 1)
        yield (
            f"quality-{name}",
            f"Right answers by task against {path}, with 95 % intervals.",
            curves(lines, name, {} if is_varied else alone, baseline),
            (8.4, 1.3 + 1.55 * rows),
        )  # fmt: skip


def _changes(results: Results, summaries: Mapping[str, Summary]) -> Iterator[Picture]:
    """What refining did to drafts, over all tasks and task by task."""
    refined = [
        (arm, summaries[arm])
        for arm, records in results.records.items()
        if all(record.mode not in ("none", "generate", "score") for record in records)
    ]
    if not refined:
        return
    yield (
        "fix-harm", "What refining did to drafts: wrong ones put right, right ones put wrong.",
        fix_harm([(_name(results, arm), one) for arm, one in refined]),
        (8.4, 1.1 + 0.24 * len(refined)),
    )  # fmt: skip
    changes: dict[str, dict[str, Change]] = {}
    for arm, _ in refined:
        for task in results.tasks:
            one = summarise(arm, [r for r in results.records[arm] if r.task == task])
            count = one.fixes + one.harms + one.kept_right + one.kept_wrong
            changes.setdefault(_name(results, arm), {})[task] = one.fixes, one.harms, count
    yield (
        "fix-harm-tasks", "The same by task: drafts that were fixed and harmed.",
        fix_harm_matrix(changes), (8.4, 1.2 + 0.27 * len(refined)),
    )  # fmt: skip


def _grids(results: Results) -> Iterator[tuple[str, str, dict[str, list[Point]]]]:
    """Every grid over one numeric field: group, path, and (value, right, count) by task."""
    for group, arms in results.groups().items():
        paths = {path for arm in arms for path in results.values(arm)}
        if len(paths) != 1 or len(arms) < 2:
            continue
        (path,) = paths
        found: dict[str, list[Point]] = defaultdict(list)
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


def _name(results: Results, arm: str) -> str:
    """A policy's name in a picture, without the fields that its grid went over."""
    group = next(one["group"] for one in results.about["arms"] if one["name"] == arm)
    label = _label(results, arm)
    return f"{group}: {label}" if label else group


def _parallelism(results: Results, summaries: Mapping[str, Summary]) -> Iterator[tuple[str, float]]:
    """AUP of every grid over denoising steps."""
    for group, arms in results.groups().items():
        if len(arms) > 1 and all(_STEPS in path for arm in arms for path in results.values(arm)):
            points = [(summaries[a].tokens_per_forward, 100 * summaries[a].accuracy) for a in arms]
            yield group, area_under_parallelism(points)


def _embed(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
