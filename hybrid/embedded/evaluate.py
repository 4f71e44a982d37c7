"""Measure the shipped pair: `python -m hybrid.embedded.evaluate`, a few minutes on two cores.

Everything runs on the native stack, from the quantised files, on held-out prompts. Rows are drafted
in batches, which changes nothing: a draft depends on its own seed alone.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cyclopts
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hybrid.deadline import Deadline
from hybrid.drafters.diffusion_gemma import DiffusionGemmaDrafter
from hybrid.embedded import weights_path
from hybrid.embedded.tasks import TASKS, Instance, check, evaluation_set
from hybrid.protocols import DraftJob
from hybrid.refiners.gemma import GemmaRefiner
from hybrid.types import Draft, DraftParams, Request

STEP_CAPS = (1, 2, 4, 8, 16, 48)
_BATCH = 50

app = cyclopts.App(name="evaluate", help=__doc__)


@dataclass(frozen=True, slots=True)
class Row:
    """One task under one setting: accuracy with its 95 % Wilson interval, passes a request."""

    task: str
    model: str
    items: int
    accuracy: float
    low: float
    high: float
    mean_passes: float


@app.default
def evaluate(
    *,
    drafter: Path | None = None,
    refiner: Path | None = None,
    items: int = 300,
    caps: tuple[int, ...] = STEP_CAPS,
    out: Path | None = None,
) -> None:
    """Print the table, and write it as JSON to OUT if that is given."""
    torch.set_num_threads(1)
    sets = {task: evaluation_set(task, items) for task in TASKS}
    rows: list[Row] = []
    scores: dict[str, float | None] = {}
    first = DiffusionGemmaDrafter.from_directory(drafter or weights_path("drafter"))
    for task, instances in track(sets.items(), "drafter"):
        for cap in caps:
            drafts = draft_all(first, instances, cap, self_score=cap == 16)
            right = [check(i, d.text) for i, d in zip(instances, drafts, strict=True)]
            rows.append(_row(task, f"{cap} steps", right, (d.steps for d in drafts)))
            if cap == 16:
                least = [min(d.self_logprobs, default=0.0) for d in drafts]
                scores[task] = separation(least, right)
    second = GemmaRefiner.from_directory(refiner or weights_path("refiner"))
    for task, instances in track(sets.items(), "refiner"):
        right, passes = [], []
        for instance in instances:
            session = second.open(Request(instance.prompt), 32)
            token_ids, _ = session.continue_greedily((), 32, Deadline())
            right.append(check(instance, second.decode(token_ids)))
            passes.append(session.forward_passes)
        rows.append(_row(task, "AR", right, passes))
    print_table(rows, scores)
    if out:
        record = {"items": items, "rows": [asdict(row) for row in rows], "self_score_auroc": scores}
        out.write_text(json.dumps(record, indent=1) + "\n")


def draft_all(
    drafter: DiffusionGemmaDrafter,
    instances: Sequence[Instance],
    cap: int,
    self_score: bool = False,
) -> list[Draft]:
    """Drafts under the default sampler with at most `cap` steps, seeded by the item's number."""
    jobs = [
        DraftJob(
            request=Request(instance.prompt),
            params=DraftParams(max_denoising_steps=cap),
            seed=seed,
            max_new_tokens=drafter.canvas_length,
            deadline=Deadline(),
            self_score=self_score,
        )
        for seed, instance in enumerate(instances)
    ]
    batches = (jobs[start : start + _BATCH] for start in range(0, len(jobs), _BATCH))
    return [draft for batch in batches for draft in drafter.draft(batch)]


def wilson(right: int, items: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share."""
    z, share = 1.959964, right / items
    centre = (share + z * z / (2 * items)) / (1 + z * z / items)
    spread = (share * (1 - share) + z * z / (4 * items)) / items
    half = z * spread**0.5 / (1 + z * z / items)
    return max(0.0, centre - half), min(1.0, centre + half)


def separation(scores: Sequence[float], right: Sequence[bool]) -> float | None:
    """AUROC: how often a right draft scores above a wrong one; None if all are alike."""
    good = [score for score, is_right in zip(scores, right, strict=True) if is_right]
    bad = [score for score, is_right in zip(scores, right, strict=True) if not is_right]
    if not good or not bad:
        return None
    wins = sum((g > b) + 0.5 * (g == b) for g in good for b in bad)
    return wins / (len(good) * len(bad))


def _row(task: str, model: str, right: Sequence[bool], passes: Iterable[int]) -> Row:
    low, high = wilson(sum(right), len(right))
    mean_passes = sum(passes) / len(right)
    return Row(task, model, len(right), sum(right) / len(right), low, high, mean_passes)


def print_table(rows: Sequence[Row], scores: dict[str, Any]) -> None:
    """Accuracy in per cent by task and setting, with the passes used at the largest cap."""
    models = list(dict.fromkeys(row.model for row in rows))
    table = Table("task", *models, "passes", "AR passes", "AUROC of self-score")
    for task in dict.fromkeys(row.task for row in rows):
        by_model = {row.model: row for row in rows if row.task == task}
        sixteen = by_model.get("16 steps")
        auroc = scores.get(task)
        table.add_row(
            task,
            *(f"{100 * by_model[model].accuracy:.1f}" for model in models),
            f"{sixteen.mean_passes:.1f}" if sixteen else "",
            f"{by_model['AR'].mean_passes:.1f}",
            f"{auroc:.2f}" if auroc is not None else "",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    app()
