"""What refining does to the embedded pair's drafts: `python benchmarks/refine.py`, a few minutes.

Every mode gets the same drafts of the same held-out prompts, each drafted by itself in at most 16
steps; only `cascade, quick` has its own, of 1 step, or what `QUICK_STEPS` says of the task.
Accuracy has a 95 % Wilson interval; the time (drafting and refining, a prompt at a time, as a share
of what the refiner takes alone) and AUROC have bootstrap ones.
"""

import json
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cyclopts
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hybrid.deadline import Deadline
from hybrid.drafters.diffusion_gemma import DiffusionGemmaDrafter
from hybrid.embedded import weights_path
from hybrid.embedded.tasks import TASKS, Instance, check, evaluation_set
from hybrid.experiments.statistics import proportion_interval
from hybrid.policies.measurements import hardware
from hybrid.protocols import DraftJob
from hybrid.refiners.context import FixedTokens, RefineContext
from hybrid.refiners.gemma import GemmaRefiner
from hybrid.refiners.guide import RefinerGuide
from hybrid.refiners.refine import refine, write_alone
from hybrid.types import DEFAULT_TOKEN_LOGPROB, Draft, DraftParams, RefineParams, Request

STEPS, CANVAS_LENGTH = 16, 32
QUICK, QUICK_STEPS = "cascade, quick", {"code": 6, "reason": 2}  # the fastest on other prompts
MODES: Mapping[str, RefineParams] = {
    "best_of, self": RefineParams("best_of", "self"),
    "repair, self": RefineParams("repair", "self", min_token_logprob=-3.0),
    "repair, refiner": RefineParams("repair", min_token_logprob=-3.0, repair_with="refiner"),
    "guide": RefineParams("guide", min_token_logprob=DEFAULT_TOKEN_LOGPROB),
    "rewrite": RefineParams("rewrite"),
    "cascade": RefineParams("cascade", min_token_logprob=DEFAULT_TOKEN_LOGPROB),
    "cascade, self": RefineParams("cascade", "self", min_token_logprob=-1.0),
    QUICK: RefineParams("cascade", "entropy", min_token_logprob=-0.3),
    "verify": RefineParams("verify"),
}

DRAWS = 1000
Scores = NDArray[np.float64]

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
    """One task, or all of them, under one mode: shares, counts, and means a prompt.

    `low` to `high` is the interval of `refined`; `time_share` is the time as a share of what the
    refiner takes alone.
    """

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
    time_share: float
    time_low: float
    time_high: float


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
    quickly: list[Answer] = []
    for task in track(TASKS, "tasks"):
        instances = evaluation_set(task, items)
        draft_each(drafter, instances[:1], STEPS)  # the first call is slower
        drafts, first = draft_each(drafter, instances, STEPS)
        steps = QUICK_STEPS.get(task, 1)
        quick, first_quick = draft_each(drafter, instances, steps, self_score=False)
        without = [answer_alone(refiner, instance) for instance in instances]
        for mode, params in MODES.items():
            given, timed = (quick, first_quick) if mode == QUICK else (drafts, first)
            refined = [
                refine_one(drafter, refiner, instance, written, seed, params)
                for seed, (instance, written) in enumerate(zip(instances, given, strict=True))
            ]
            rows.append(summarise(task, mode, timed, refined, without))
            by_mode[mode] += refined
        scores += [min(written.self_logprobs, default=0.0) for written in drafts]
        drafted += first
        quickly += first_quick
        alone += without
    for mode in MODES:
        before = quickly if mode == QUICK else drafted
        rows.append(summarise("all", mode, before, by_mode[mode], alone))
    show(rows)
    right = [a.right for a in drafted]
    auroc = separate("all", scores, right)
    by_task = []
    for place, task in enumerate(TASKS):
        part = slice(place * items, (place + 1) * items)
        if len({*right[part]}) == 2:
            by_task.append(separate(task, scores[part], right[part]))
    for one in (auroc, *by_task):
        interval = f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"
        Console().print(f"AUROC of the self-score, {one.task}: {interval}, {one.wrong} wrong")
    record = {"benchmark": "refine", "items": items, "steps": STEPS}
    record |= {"self_score": [asdict(one) for one in (auroc, *by_task)]}
    record |= {"device": hardware(), "torch": torch.__version__, "commit": commit()}
    line = json.dumps(record | {"rows": [asdict(row) for row in rows]})
    print(line)
    if out:
        out.write_text(line + "\n")


@dataclass(frozen=True, slots=True)
class Separation:
    """AUROC of the least self-score on a task with right and wrong drafts."""

    task: str
    wrong: int
    value: float
    low: float
    high: float


def separate(task: str, scores: Sequence[float], right: Sequence[bool]) -> Separation:
    """How well scores tell right from wrong; right and wrong are drawn apart for the interval."""
    good = np.array([score for score, is_right in zip(scores, right, strict=True) if is_right])
    bad = np.array([score for score, is_right in zip(scores, right, strict=True) if not is_right])
    rng = np.random.default_rng(0)

    def auroc(good: Scores, bad: Scores) -> float:
        above, equal = good[:, None] > bad, good[:, None] == bad
        return float((above + 0.5 * equal).mean())

    drawn = sorted(
        auroc(rng.choice(good, len(good)), rng.choice(bad, len(bad))) for _ in range(DRAWS)
    )
    return Separation(task, len(bad), auroc(good, bad), *interval(drawn))


def commit() -> str:
    """The checkout's, if it is one."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def draft_each(
    drafter: DiffusionGemmaDrafter,
    instances: Sequence[Instance],
    steps: int,
    self_score: bool = True,
) -> tuple[list[Draft], list[Answer]]:
    """A draft of each, by itself, and how good it is."""
    params, drafts, answers = DraftParams(max_denoising_steps=steps), [], []
    for seed, instance in enumerate(instances):
        request = Request(instance.prompt)
        job = DraftJob(request, params, seed, CANVAS_LENGTH, Deadline(), self_score=self_score)
        started = time.perf_counter()
        (written,) = drafter.draft([job])
        seconds = time.perf_counter() - started
        drafts.append(written)
        answers.append(Answer(check(instance, written.text), written.steps, seconds, 0))
    return drafts, answers


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

    def redraft(fixed: FixedTokens) -> Draft:
        return drafter.draft([replace(job, seed=job.seed + seed, fixed_token_ids=fixed)])[0]

    context = RefineContext(
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
    _, refinement = refine(context)
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
    low, high = proportion_interval(sum(a.right for a in refined), count)
    before = list(zip(drafted, refined, strict=True))
    drafting = 0.0 if mode == "guide" else 1.0  # a guided draft takes the first one's place
    both = [1e3 * (drafting * a.seconds + b.seconds) for a, b in before]
    without = [1e3 * a.seconds for a in alone]
    time_low, time_high = bootstrap_share(both, without)
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
        milliseconds_alone=statistics.fmean(without),
        time_share=sum(both) / sum(without),
        time_low=time_low,
        time_high=time_high,
    )


def bootstrap_share(parts: Sequence[float], wholes: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the sum of `parts` as a share of the sum of `wholes`, drawn in pairs."""
    places = np.random.default_rng(0).integers(len(parts), size=(DRAWS, len(parts)))
    part, whole = np.array(parts)[places].sum(-1), np.array(wholes)[places].sum(-1)
    return interval(sorted((part / whole).tolist()))


def interval(drawn: Sequence[float]) -> tuple[float, float]:
    """The middle 95 % of sorted values."""
    return drawn[int(0.025 * len(drawn))], drawn[int(0.975 * len(drawn))]


def show(rows: Sequence[Row]) -> None:
    """The table; `alone` is the refiner without a draft."""
    counts = ("draft", "refined", "alone", "fixes", "harms", "kept", "passes", "alone")
    table = Table("task", "mode", *counts, "ms", "alone", "time", padding=0)
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
            f"{100 * row.time_share:.0f} % ({100 * row.time_low:.0f} to {100 * row.time_high:.0f})",
            end_section=row.mode == [*MODES][-1],
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    app()
