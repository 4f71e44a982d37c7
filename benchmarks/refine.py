"""What refining does to the embedded pair's drafts: `python benchmarks/refine.py`, a few minutes.

Every mode gets the same drafts of the same held-out prompts, each drafted by itself in at most 16
steps. Accuracy has a 95 % Wilson interval, the milliseconds saved (drafting and refining against
the refiner alone, a prompt at a time) a paired bootstrap one.
"""

import json
import random
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cyclopts
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hybrid.deadline import Deadline
from hybrid.drafters.diffusion_gemma import DiffusionGemmaDrafter
from hybrid.embedded import weights_path
from hybrid.embedded.evaluate import CANVAS_LENGTH, draft_all, separation, wilson
from hybrid.embedded.tasks import TASKS, Instance, check, evaluation_set
from hybrid.policies.measurements import hardware
from hybrid.protocols import DraftJob
from hybrid.refiners.assignment import Assignment, Clamp
from hybrid.refiners.gemma import GemmaRefiner
from hybrid.refiners.guide import RefinerGuide
from hybrid.refiners.refine import refine, write_alone
from hybrid.types import DEFAULT_TOKEN_LOGPROB, Draft, DraftParams, RefineParams, Request

STEPS = 16
MODES: Mapping[str, RefineParams] = {
    "best_of, self": RefineParams("best_of", "self"),
    "repair, self": RefineParams("repair", "self", min_token_logprob=-3.0),
    "repair, refiner": RefineParams("repair", min_token_logprob=-3.0, repair_with="refiner"),
    "guide": RefineParams("guide", min_token_logprob=DEFAULT_TOKEN_LOGPROB),
    "rewrite": RefineParams("rewrite"),
    "cascade": RefineParams("cascade", min_token_logprob=DEFAULT_TOKEN_LOGPROB),
    "cascade, self": RefineParams("cascade", "self", min_token_logprob=-1.0),
    "verify": RefineParams("verify"),
}

app = cyclopts.App(name="refine", help=__doc__)


@dataclass(frozen=True, slots=True)
class Answer:
    """One prompt under one mode: whether it is right, and what the refiner took."""

    right: bool
    passes: int
    seconds: float
    kept: int


@dataclass(frozen=True, slots=True)
class Row:
    """One task, or all of them, under one mode: shares, counts, and means a prompt."""

    task: str
    mode: str
    items: int
    draft: float
    refined: float
    low: float
    high: float
    alone: float
    fixes: int
    harms: int
    passes: float
    passes_alone: float
    kept: float
    milliseconds: float
    milliseconds_alone: float
    saved_ms: float
    saved_low: float
    saved_high: float


@app.default
def benchmark(*, items: int = 100, out: Path | None = None) -> None:
    """Print accuracy, fixes, harms and cost by task and mode; write them as JSON to OUT."""
    torch.set_num_threads(1)
    drafter = DiffusionGemmaDrafter.from_directory(weights_path("drafter"))
    refiner = GemmaRefiner.from_directory(weights_path("refiner"))
    rows: list[Row] = []
    scores: list[float] = []
    drafted: list[Answer] = []
    alone: list[Answer] = []
    by_mode: dict[str, list[Answer]] = {mode: [] for mode in MODES}
    for task in track(TASKS, "tasks"):
        instances = evaluation_set(task, items)
        draft_all(drafter, instances[:1], STEPS)
        timed = [draft(drafter, instance, seed) for seed, instance in enumerate(instances)]
        drafts, first = [pair[0] for pair in timed], [pair[1] for pair in timed]
        without = [answer_alone(refiner, instance) for instance in instances]
        for mode, params in MODES.items():
            pairs = enumerate(zip(instances, drafts, strict=True))
            refined = [
                refine_one(drafter, refiner, instance, written, seed, params)
                for seed, (instance, written) in pairs
            ]
            rows.append(summarise(task, mode, first, refined, without))
            by_mode[mode] += refined
        scores += [min(written.self_logprobs, default=0.0) for written in drafts]
        drafted += first
        alone += without
    rows += [summarise("all", mode, drafted, by_mode[mode], alone) for mode in MODES]
    show(rows)
    auroc = separation(scores, [a.right for a in drafted])
    Console().print(f"self-score over all tasks: AUROC {auroc:.3f}")
    by_task = separations(scores, [a.right for a in drafted], items)
    for task, value in by_task.items():
        Console().print(f"  {task}: {value:.3f}")
    record = {"benchmark": "refine", "items": items, "steps": STEPS, "self_score_auroc": auroc}
    record |= {"self_score_auroc_by_task": by_task}
    record |= {"device": hardware(), "torch": torch.__version__, "commit": commit()}
    line = json.dumps(record | {"rows": [asdict(row) for row in rows]})
    print(line)
    if out:
        out.write_text(line + "\n")


def separations(scores: Sequence[float], right: Sequence[bool], items: int) -> Mapping[str, float]:
    """AUROC of the self-score on each task that has right and wrong drafts."""
    found: dict[str, float] = {}
    for place, task in enumerate(TASKS):
        part = slice(place * items, (place + 1) * items)
        value = separation(scores[part], right[part])
        if value is not None:
            found[task] = value
    return found


def commit() -> str:
    """The checkout's, if it is one."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def draft(drafter: DiffusionGemmaDrafter, instance: Instance, seed: int) -> tuple[Draft, Answer]:
    """One draft, as good as it is."""
    params = DraftParams(max_denoising_steps=STEPS)
    job = DraftJob(
        Request(instance.prompt), params, seed, CANVAS_LENGTH, Deadline(), self_score=True
    )
    started = time.perf_counter()
    (written,) = drafter.draft([job])
    seconds = time.perf_counter() - started
    return written, Answer(check(instance, written.text), written.steps, seconds, 0)


def refine_one(
    drafter: DiffusionGemmaDrafter,
    refiner: GemmaRefiner,
    instance: Instance,
    first: Draft,
    seed: int,
    params: RefineParams,
) -> Answer:
    """Refine one draft; what a mode drafts more of counts as its own time."""
    request, sampler = Request(instance.prompt), DraftParams(max_denoising_steps=STEPS)
    job = DraftJob(request, sampler, 10_000, CANVAS_LENGTH, Deadline(), self_score=True)
    started = time.perf_counter()
    more: list[Draft] = []
    if params.mode == "best_of":
        seeds = range(job.seed + params.drafts * seed + 1, job.seed + params.drafts * (seed + 1))
        more = drafter.draft([replace(job, seed=another) for another in seeds])
    opened = None
    if params.mode == "guide":
        guide = RefinerGuide(refiner, request, params, CANVAS_LENGTH, Deadline())
        (first,) = drafter.draft([replace(job, seed=seed, guide=guide)])
        opened = guide.session

    def redraft(clamp: Clamp) -> Draft:
        return drafter.draft([replace(job, seed=job.seed + seed, clamp=clamp)])[0]

    assignment = Assignment(
        request,
        first,
        params,
        CANVAS_LENGTH,
        Deadline(),
        refiner,
        redraft=redraft,
        more_drafts=more,
        opened=opened,
    )
    _, refinement = refine(assignment)
    seconds = time.perf_counter() - started
    right = check(instance, refinement.text)
    return Answer(right, refinement.forward_passes, seconds, refinement.accepted_tokens)


def answer_alone(refiner: GemmaRefiner, instance: Instance) -> Answer:
    """What the refiner writes without a draft."""
    started = time.perf_counter()
    refinement = write_alone(refiner, Request(instance.prompt), CANVAS_LENGTH, Deadline())
    seconds = time.perf_counter() - started
    right = check(instance, refinement.text)
    return Answer(right, refinement.forward_passes, seconds, 0)


def summarise(
    task: str,
    mode: str,
    drafted: Sequence[Answer],
    refined: Sequence[Answer],
    alone: Sequence[Answer],
) -> Row:
    """One row of the table."""
    count = len(refined)
    low, high = wilson(sum(a.right for a in refined), count)
    before = list(zip(drafted, refined, strict=True))
    drafting = 0.0 if mode == "guide" else 1.0  # a guided draft takes the first one's place
    both = [1e3 * (drafting * a.seconds + b.seconds) for a, b in before]
    saved = [1e3 * a.seconds - total for a, total in zip(alone, both, strict=True)]
    saved_low, saved_high = bootstrap(saved)
    return Row(
        task=task,
        mode=mode,
        items=count,
        draft=sum(a.right for a in drafted) / count,
        refined=sum(a.right for a in refined) / count,
        low=low,
        high=high,
        alone=sum(a.right for a in alone) / count,
        fixes=sum(b.right and not a.right for a, b in before),
        harms=sum(a.right and not b.right for a, b in before),
        passes=statistics.fmean(a.passes for a in refined),
        passes_alone=statistics.fmean(a.passes for a in alone),
        kept=statistics.fmean(a.kept for a in refined),
        milliseconds=statistics.fmean(both),
        milliseconds_alone=1e3 * statistics.fmean(a.seconds for a in alone),
        saved_ms=statistics.fmean(saved),
        saved_low=saved_low,
        saved_high=saved_high,
    )


def bootstrap(values: Sequence[float], draws: int = 1000) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean; the same for the same values."""
    rng = random.Random(0)
    means = sorted(statistics.fmean(rng.choices(values, k=len(values))) for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws)]


def show(rows: Sequence[Row]) -> None:
    """The table; `alone` is the refiner without a draft."""
    counts = ("draft", "refined", "alone", "fixes", "harms", "kept", "passes", "alone")
    table = Table("task", "mode", *counts, "ms", "alone", "saved", padding=0)
    for row in rows:
        table.add_row(
            row.task,
            row.mode,
            f"{100 * row.draft:.0f}",
            f"{100 * row.refined:.0f} ({100 * row.low:.0f}-{100 * row.high:.0f})",
            f"{100 * row.alone:.0f}",
            str(row.fixes),
            str(row.harms),
            f"{row.kept:.1f}",
            f"{row.passes:.1f}",
            f"{row.passes_alone:.1f}",
            f"{row.milliseconds:.0f}",
            f"{row.milliseconds_alone:.0f}",
            f"{row.saved_ms:.0f} ({row.saved_low:.0f} to {row.saved_high:.0f})",
            end_section=row.mode == [*MODES][-1],
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    app()
