"""One page about an experiment: what was compared, what came out, and how sure that is.

The page holds its pictures and needs no network. Numbers come from `summary.json`, which is written
beside it, and each of them from the records with that policy's name.
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
from hybrid.experiments.pictures import ByTask, pictures
from hybrid.experiments.rivals import against_presets
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
    aup = dict(_parallelism(results, summaries))
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
        "aup": aup,
    }
    fitted: list[Table] = []
    with suppress(CheckpointError):  # not every experiment has what a policy is fitted to
        policy = fit(results)
        rivals = against_presets(results, policy)
        fitted = fitted_tables(policy, rivals)
        summary["fitted"] = {
            one.name: {**asdict(one), "verdict": one.verdict} for one in rivals.compared
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
    unjudged = [one.score_error for one in results.everything if one.score_error]
    templates = Environment(loader=PackageLoader("hybrid.experiments", ""), autoescape=True)
    return templates.get_template("report.html.jinja").render(
        about=results.about,
        results=results,
        unjudged=len(unjudged),
        why=Counter(unjudged).most_common(1)[0][0] if unjudged else "",
        machines=[machine.removesuffix(" []") for machine in results.machines],
        pictures=shown,
        answers=[best_under([*summaries.values()]), fastest_above([*summaries.values()])],
        tables=tables,
        count=len({record.key for record in results.everything}),
    )


def _parallelism(results: Results, summaries: Mapping[str, Summary]) -> Iterator[tuple[str, float]]:
    """AUP of every grid over denoising steps."""
    for group, arms in results.groups().items():
        if len(arms) > 1 and all(_STEPS in path for arm in arms for path in results.values(arm)):
            found = [summaries[arm] for arm in arms if summaries[arm].count]
            if found:
                points = [(one.tokens_per_forward, 100 * one.accuracy) for one in found]
                yield group, area_under_parallelism(points)


def _embed(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
