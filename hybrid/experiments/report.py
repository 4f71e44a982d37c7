"""One HTML page about an experiment: conditions, results and their uncertainty.

The page contains its figures and needs no network. Its numbers come from `summary.json`, which is
written beside it.
"""

import base64
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from hybrid.errors import CheckpointError
from hybrid.experiments.fit import fit
from hybrid.experiments.grids import grid_lines
from hybrid.experiments.pictures import ByTask, pictures
from hybrid.experiments.preset_comparison import compare_with_presets
from hybrid.experiments.summary import (
    Results,
    Summary,
    area_under_parallelism,
    comparisons,
    read_results,
    summarise,
)
from hybrid.experiments.tables import Table, all_tables, best_under, fastest_above, fitted_tables
from hybrid.experiments.theme import draw

_STEPS = "max_denoising_steps"
_PIXELS = 128  # of the page, for an inch of a picture


def write_report(folder: Path) -> Path:
    """`report.html`, `summary.json` and `figures/`; returns the page. Raises CheckpointError."""
    results = read_results(folder)
    if not results.records:
        raise CheckpointError(str(folder), "has no records of this experiment; run it first")
    summaries = {
        condition: summarise(condition, records) for condition, records in results.records.items()
    }
    by_task = {
        task: {
            condition: summarise(condition, found)
            for condition, records in results.records.items()
            if (found := [record for record in records if record.task == task])
        }
        for task in results.tasks
    }
    compared = comparisons(results)
    aup = dict(_parallelism(results, summaries))
    summary = {
        "policies": {condition: asdict(one) for condition, one in summaries.items()},
        "by_task": {
            task: {condition: asdict(one) for condition, one in found.items()}
            for task, found in by_task.items()
        },
        "against_baseline": {
            condition: {**asdict(one), "p_accuracy_holm": accuracy, "p_latency_holm": latency}
            for condition, (one, accuracy, latency) in compared.items()
        },
        "aup": aup,
    }
    fitted: list[Table] = []
    with suppress(CheckpointError):  # not every experiment has what a policy is fitted to
        policy = fit(results)
        presets = compare_with_presets(results, policy)
        fitted = fitted_tables(policy, presets)
        summary["fitted"] = {
            one.name: {**asdict(one), "verdict": one.verdict} for one in presets.compared
        }
    tables = [*all_tables(results, summaries, compared, by_task, aup), *fitted]
    file = folder / "report.html"
    try:
        shown = _draw(results, summaries, by_task, folder / "figures")
        text = json.dumps(_finite(summary), indent=1) + "\n"
        (folder / "summary.json").write_text(text, "utf-8")
        file.write_text(_page(results, summaries, shown, tables), "utf-8")
    except OSError as error:
        message = f"cannot be written: {error.strerror}"
        raise CheckpointError(str(error.filename or folder), message) from None
    return file


def _draw(
    results: Results, summaries: Mapping[str, Summary], by_task: ByTask, folder: Path
) -> list[dict[str, Any]]:
    """The pictures, drawn into a folder, as the page shows them."""
    folder.mkdir(exist_ok=True)
    shown = []
    for name, caption, drawing, size in pictures(results, summaries, by_task):
        files = draw(drawing, size, folder / name)
        themes = {file.stem.rpartition("-")[2]: _embed(file) for file in files}
        shown.append({"caption": caption, "width": round(_PIXELS * size[0]), **themes})
    return shown


def _page(
    results: Results,
    summaries: Mapping[str, Summary],
    shown: Sequence[Mapping[str, Any]],
    tables: Sequence[Table],
) -> str:
    unscored = [one.score_error for one in results.everything if one.score_error]
    templates = Environment(loader=PackageLoader("hybrid.experiments", ""), autoescape=True)
    return templates.get_template("report.html.jinja").render(
        manifest=results.manifest,
        results=results,
        unscored=len(unscored),
        why=Counter(unscored).most_common(1)[0][0] if unscored else "",
        machines=[machine.removesuffix(" []") for machine in results.machines],
        pictures=shown,
        answers=[best_under([*summaries.values()]), fastest_above([*summaries.values()])],
        tables=tables,
        count=len({record.key for record in results.everything}),
    )


def _parallelism(results: Results, summaries: Mapping[str, Summary]) -> Iterator[tuple[str, float]]:
    """AUP of every line of a grid along which denoising steps vary."""
    for line in grid_lines(results):
        found = [summaries[one] for one in line.conditions if summaries[one].count]
        if line.path.endswith(_STEPS) and found:
            points = [(one.tokens_per_forward, 100 * one.accuracy) for one in found]
            yield line.label, area_under_parallelism(points)


def _embed(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
