"""Which figures an experiment has data for, with their captions.

Each is drawn by a function of its own file, which takes values and knows nothing of experiments.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from hybrid.experiments.figures import (
    Change,
    Point,
    curves,
    fix_harm,
    fix_harm_matrix,
    predictions,
    steps_histogram,
)
from hybrid.experiments.frontier import frontier
from hybrid.experiments.grids import grid_lines
from hybrid.experiments.records import Record
from hybrid.experiments.reliability import reliability
from hybrid.experiments.summary import Results, Summary
from hybrid.experiments.theme import Drawing
from hybrid.modes import MODES

Picture = tuple[str, str, Drawing, tuple[float, float]]  # file, caption, drawing, inches
ByTask = Mapping[str, Mapping[str, Summary]]  # task, policy
_UNITS = {  # of fields that a grid may vary
    "budget": "ms",
    "entropy_bound": "nats",
    "confidence_threshold": "nats",
    "min_mean_logprob": "nats",
    "min_token_logprob": "nats",
}
_MIN_SCORED = 20  # drafts, for a reliability diagram


def pictures(
    results: Results, summaries: Mapping[str, Summary], by_task: ByTask
) -> Iterator[Picture]:
    """The pictures that the experiment has data for."""
    chosen = results.manifest["experiment"].get("frontier") or [*results.groups()]
    groups = {
        group: [
            (_label(results, condition), summaries[condition])
            for condition in conditions
            if summaries[condition].is_known
        ]
        for group, conditions in results.groups().items()
        if group in chosen
    }
    if any(groups.values()):
        joined: dict[str, list[list[Summary]]] = {}
        for line in grid_lines(results):
            known = [summaries[one] for one in line.conditions if summaries[one].is_known]
            joined.setdefault(line.group, []).append(known)
        yield (
            "frontier", f"{_title(results)} against median latency, with 95 % intervals of both; "
            f"{_asked({'': summaries})} a point. Labels are the values of a grid's fields; lines "
            "join policies that differ in one numeric field.",
            frontier(groups, joined, _axis(results)), (8.4, 5.0),
        )  # fmt: skip
    yield from _curves(results, by_task)
    drafted = [r for r in results.everything if r.max_steps is not None and r.canvases]
    unrefined = [record for record in drafted if record.mode == "none"]
    if unrefined:
        cap, steps = _steps(unrefined)
        rows = 1 if len(steps) <= 5 else 2
        yield (
            "steps", f"Denoising steps that canvases really took, of all policies that allow {cap} "
            f"and do not refine (n = {sum(map(len, steps.values())):,}); dotted: the mean.",
            steps_histogram(steps, cap), (8.4, 1.2 + 1.5 * rows),
        )  # fmt: skip
    yield from _changes(results, summaries, by_task)
    different = {record.key: record for record in unrefined}.values()
    scored = [record for record in different if record.was_right is not None]
    if len(scored) >= _MIN_SCORED:
        rows = -(-(1 + len({record.task for record in scored})) // 4)
        yield (
            "reliability", "Whether a draft's certainty at commit tells right from wrong: drafts "
            "of all policies that did not refine them, in bins of equal counts. Intervals (95 %) "
            "draw all drafts of a prompt together; n: prompts; ECE: expected calibration error.",
            reliability(scored), (8.4, 0.8 + 1.75 * rows),
        )  # fmt: skip
    predicted = [r for r in results.everything if r.error is None and r.predicted_p50_s > 0]
    if predicted:
        yield (
            "predictions", "What the planner predicted, and what the requests took. A policy "
            "without tasks predicts the same for all of them. The axes leave out one request in a "
            "thousand at either end.", predictions(predicted), (6.4, 5.2),
        )  # fmt: skip


def _title(results: Results) -> str:
    return "Right answers" if results.is_right_or_wrong else "Mean score"


def _axis(results: Results) -> str:
    """What an axis of accuracy is called: of scores between 0 and 1, the mean."""
    return f"{_title(results).lower()}, %"


def _asked(by_task: ByTask) -> str:
    """How many requests the numbers of a policy are of."""
    counts = [one.count for found in by_task.values() for one in found.values() if one.count]
    low, high = min(counts), max(counts)
    return f"{low:,} requests" if low == high else f"{low:,} to {high:,} requests"


def _curves(results: Results, by_task: ByTask) -> Iterator[Picture]:
    """Quality over every numeric field of a grid, with all grids over a field in one figure."""
    baseline = results.manifest["baseline"]
    alone = {
        task: found[baseline].accuracy
        for task, found in by_task.items()
        if baseline in found and found[baseline].count
    }
    by_path: dict[str, dict[str, dict[str, list[Point]]]] = {}
    for line in grid_lines(results):
        for task, found in by_task.items():
            points = [
                (value, found[one].accuracy, found[one].accuracy_interval)
                for value, one in zip(line.values, line.conditions, strict=True)
                if one in found and found[one].count
            ]
            if points:
                by_path.setdefault(line.path, {}).setdefault(task, {})[line.label] = points
    for path, lines in by_path.items():
        name = path.split(".")[-1]
        label = f"{name}, {_UNITS[name]}" if name in _UNITS else name
        rows = -(-len(lines) // 5)
        is_varied = any(
            baseline in conditions
            for conditions in results.groups().values()
            if len(conditions) > 1
        )
        yield (
            f"quality-{name}",
            f"{_title(results)} by task against {path}, with 95 % intervals; "
            f"{_asked(by_task)} a point.",
            curves(lines, label, {} if is_varied else alone, baseline, _axis(results)),
            (8.4, 1.5 + 1.55 * rows),
        )  # fmt: skip


def _changes(
    results: Results, summaries: Mapping[str, Summary], by_task: ByTask
) -> Iterator[Picture]:
    """What refining did to drafts, over all tasks and task by task."""
    refined = [
        (condition, summaries[condition])
        for condition, records in results.records.items()
        if all(MODES[record.mode].changes_drafts for record in records)
    ]
    if not refined:
        return
    yield (
        "fix-harm", "What refining did to drafts: wrong ones put right, right ones put wrong.",
        fix_harm([(_name(results, condition), one) for condition, one in refined]),
        (8.4, 1.1 + 0.24 * len(refined)),
    )  # fmt: skip
    changes: dict[str, dict[str, Change]] = {}
    for condition, _ in refined:
        for task, found in by_task.items():
            if condition not in found:
                continue
            one = found[condition]
            count = one.fixes + one.harms + one.kept_right + one.kept_wrong
            changes.setdefault(_name(results, condition), {})[task] = one.fixes, one.harms, count
    yield (
        "fix-harm-tasks", "The same by task: how many drafts were fixed (+) and harmed "
        "(\N{MINUS SIGN}); a dot where none was.",
        fix_harm_matrix(changes), (8.4, 1.2 + 0.27 * len(refined)),
    )  # fmt: skip


def _steps(records: Sequence[Record]) -> tuple[int, dict[str, list[int]]]:
    """The largest of the caps that the most tasks were drafted with, and their canvases' steps."""
    tasks: dict[int, set[str]] = defaultdict(set)
    for record in records:
        tasks[record.max_steps or 0].add(record.task)
    cap = max(tasks, key=lambda one: (len(tasks[one]), one))
    steps: dict[str, list[int]] = defaultdict(list)
    for record in {record.key: record for record in records if record.max_steps == cap}.values():
        steps[record.task] += [canvas[0] for canvas in record.canvases]
    return cap, steps


def _label(results: Results, condition: str) -> str:
    """A policy's short name beside its point: what the grid set."""
    return ", ".join(str(value) for value in results.values(condition).values())


def _name(results: Results, condition: str) -> str:
    """A policy's name in a picture, without the fields that its grid went over."""
    group = next(one["group"] for one in results.manifest["conditions"] if one["name"] == condition)
    label = _label(results, condition)
    return f"{group}: {label}" if label else group
