"""Measure the shipped pair: `python -m training.evaluate`, a few minutes on two cores.

Everything runs on the native stack, from the quantized files, on held-out prompts. Rows are drafted
in batches, which changes nothing: a draft depends on its own seed alone.
"""

import json
from collections.abc import Mapping, Sequence
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
from hybrid.embedded.tasks import MEASURED, TASKS, Instance, check, evaluation_set
from hybrid.experiments.statistics import proportion_interval
from hybrid.protocols import DraftJob
from hybrid.refiners.gemma import GemmaRefiner
from hybrid.refiners.verdict import evaluate_draft
from hybrid.refiners.verify import count_agreed
from hybrid.types import DEFAULT_TOKEN_LOGPROB, Draft, DraftParams, RefineParams, Request

CANVAS_LENGTH, STEP_CAPS = 32, (1, 2, 4, 8, 16, 48)
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


@dataclass(frozen=True, slots=True)
class Measured:
    """One task. `agreement` is the share of the drafts that `verify` keeps and `cascade` the
    accuracy of that mode, both by cap; the self-score is taken at the largest cap.
    """

    name: str
    rows: tuple[Row, ...]
    self_score_auroc: float | None
    agreement: Mapping[int, float]
    cascade: Mapping[int, float]

    def quality(self) -> dict[str, Any]:
        """As a policy's `quality` section has it."""
        caps = {int(row.model.split()[0]): row for row in self.rows if row.model != "AR"}
        (refiner,) = (row for row in self.rows if row.model == "AR")
        return {
            "draft": {cap: round(row.accuracy, 4) for cap, row in caps.items()},
            "refiner": round(refiner.accuracy, 4),
            "steps_used": {cap: round(row.mean_passes, 2) for cap, row in caps.items()},
            "agreement": {cap: round(share, 4) for cap, share in self.agreement.items()},
            "cascade": {cap: round(accuracy, 4) for cap, accuracy in self.cascade.items()},
        }


@app.default
def evaluate(
    *,
    drafter: Path | None = None,
    refiner: Path | None = None,
    items: int = MEASURED,
    caps: tuple[int, ...] = STEP_CAPS,
    out: Path | None = None,
) -> None:
    """Print the table, and write it as JSON to OUT if that is given."""
    torch.set_num_threads(1)
    first = DiffusionGemmaDrafter.from_directory(drafter or weights_path("drafter"))
    second = GemmaRefiner.from_directory(refiner or weights_path("refiner"))
    measured = [
        measure_task(first, second, evaluation_set(task, items), caps)
        for task in track(TASKS, "tasks")
    ]
    print_table(measured)
    if out:
        record = {
            "items": items,
            "rows": [asdict(row) for task in measured for row in task.rows],
            "self_score_auroc": {task.name: task.self_score_auroc for task in measured},
            "quality": {task.name: task.quality() for task in measured},
        }
        out.write_text(json.dumps(record, indent=1) + "\n")


def measure_task(
    drafter: DiffusionGemmaDrafter,
    refiner: GemmaRefiner,
    instances: Sequence[Instance],
    caps: Sequence[int],
) -> Measured:
    """One task: the drafter at every cap, the refiner alone, and the refiner on drafts."""
    name = instances[0].task
    sessions = [refiner.open(Request(i.prompt), CANVAS_LENGTH) for i in instances]
    answers = [s.write((), CANVAS_LENGTH)[0] for s in sessions]
    answered = [check(i, refiner.decode(a)) for i, a in zip(instances, answers, strict=True)]
    rows, agreement, cascade = [], {}, {}
    for cap in caps:
        drafts = draft_all(drafter, instances, cap)
        right = [check(i, d.text) for i, d in zip(instances, drafts, strict=True)]
        rows.append(_row(name, f"{cap} steps", right, [d.steps for d in drafts]))
        # Greedy decoding is its own arg-max, so its answer tells what verify would keep.
        kept = [
            count_agreed(draft.token_ids, answer, refiner.end_token_ids)
            for draft, answer in zip(drafts, answers, strict=True)
        ]
        agreement[cap] = sum(kept) / sum(len(draft.token_ids) for draft in drafts)
        passed = [passes(refiner, i, draft) for i, draft in zip(instances, drafts, strict=True)]
        mended = [r if p else a for r, p, a in zip(right, passed, answered, strict=True)]
        cascade[cap] = sum(mended) / len(mended)
    scores = [min(draft.self_logprobs, default=0.0) for draft in drafts]
    rows.append(_row(name, "AR", answered, [s.forward_passes for s in sessions]))
    return Measured(name, tuple(rows), separation(scores, right), agreement, cascade)


def passes(refiner: GemmaRefiner, instance: Instance, draft: Draft) -> bool:
    """Whether `cascade` takes the draft; if not, it writes what the refiner alone would have."""
    logprobs = refiner.open(Request(instance.prompt), CANVAS_LENGTH).score(draft.token_ids).logprobs
    is_whole = bool(draft.token_ids) and draft.token_ids[-1] in refiner.end_token_ids
    params = RefineParams("cascade", min_token_logprob=DEFAULT_TOKEN_LOGPROB)
    return is_whole and evaluate_draft(logprobs, params).accepted


def draft_all(
    drafter: DiffusionGemmaDrafter,
    instances: Sequence[Instance],
    cap: int,
) -> list[Draft]:
    """Drafts under the default sampler with at most `cap` steps, seeded by the item's number."""
    jobs = [
        DraftJob(
            request=Request(instance.prompt),
            params=DraftParams(max_denoising_steps=cap),
            seed=seed,
            max_new_tokens=drafter.canvas_length,
            deadline=Deadline(),
            self_score=True,
        )
        for seed, instance in enumerate(instances)
    ]
    batches = (jobs[start : start + _BATCH] for start in range(0, len(jobs), _BATCH))
    return [draft for batch in batches for draft in drafter.draft(batch)]


def separation(scores: Sequence[float], right: Sequence[bool]) -> float | None:
    """AUROC: how often a right draft scores above a wrong one; None if all are alike."""
    good = [score for score, is_right in zip(scores, right, strict=True) if is_right]
    bad = [score for score, is_right in zip(scores, right, strict=True) if not is_right]
    if not good or not bad:
        return None
    wins = sum((g > b) + 0.5 * (g == b) for g in good for b in bad)
    return wins / (len(good) * len(bad))


def _row(task: str, model: str, right: Sequence[bool], passes: Sequence[int]) -> Row:
    low, high = proportion_interval(sum(right), len(right))
    mean_passes = sum(passes) / len(right)
    return Row(task, model, len(right), sum(right) / len(right), low, high, mean_passes)


def print_table(measured: Sequence[Measured]) -> None:
    """Accuracy in per cent by task and setting, with the passes used at the largest cap."""
    models = [row.model for row in measured[0].rows]
    table = Table("task", *models, "passes", "AR passes", "agreement", "AUROC of self-score")
    for task in measured:
        auroc = task.self_score_auroc
        table.add_row(
            task.name,
            *(f"{100 * row.accuracy:.1f}" for row in task.rows),
            f"{task.rows[-2].mean_passes:.1f}",
            f"{task.rows[-1].mean_passes:.1f}",
            f"{[*task.agreement.values()][-1]:.2f}",
            f"{auroc:.2f}" if auroc is not None else "",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    app()
