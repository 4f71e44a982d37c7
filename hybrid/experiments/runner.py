"""Running an experiment: every policy on every item, what is recorded already left out.

Policies take turns item by item, so that whatever else the machine does slows all of them alike,
and tasks take turns too, so that a run that is stopped early has seen all of them. Policies with
the same models share them, and what is learned of their latency.
"""

import hashlib
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from hybrid.backends import Models, load_models
from hybrid.deadline import CancelFlag
from hybrid.experiments.arms import Arm
from hybrid.experiments.definition import Load
from hybrid.experiments.items import Item
from hybrid.experiments.records import Record, Recorder, request_key
from hybrid.experiments.scorers import LIKELIHOOD, find_scorer
from hybrid.modes import MODES
from hybrid.pipeline import Pipeline
from hybrid.policies.calibration import load_or_measure
from hybrid.policies.history import History
from hybrid.policies.measurements import costs_from_json, hardware
from hybrid.policies.schema import ModelSection, Policy
from hybrid.requests import make_request
from hybrid.types import Message, Plan, RefineMode, Request, Result

_THRESHOLDS = ("scorer", "min_mean_logprob", "min_token_logprob")
_MATTERS: Mapping[RefineMode, tuple[str, ...]] = {  # to the answer, of the refine settings
    "none": (),
    "score": (),
    "best_of": ("scorer", "drafts"),
    "repair": ("scorer", "min_token_logprob", "repair_with"),
    "guide": ("min_token_logprob", "guide_every"),
    "cascade": (*_THRESHOLDS, "temperature"),
    "verify": ("temperature",),
    "rewrite": ("temperature",),
    "generate": ("temperature",),
}
_SEEDS_APART, _MOST_AT_ONCE = 1_000_003, 256
LoadModels = Callable[..., Models]


@dataclass(frozen=True, slots=True)
class Cell:
    """One request to be made."""

    arm: Arm
    item: Item
    seed: int
    repeat: int

    @property
    def key(self) -> str:
        """See `request_key`."""
        item = self.item
        asked = item.prompt, item.task, item.reference, item.scorer
        return request_key(self.arm.digest, *asked, self.seed, self.repeat)

    @property
    def request(self) -> Request:
        """Its random numbers are its own, and the same under every policy.

        The task is named to policies that know it.
        """
        item = self.item
        task = item.task if item.task in self.arm.policy.tasks else None
        seed = self.seed * _SEEDS_APART + item.number
        return make_request(item.prompt, {"task": task, "seed": seed})


def list_cells(
    arms: Sequence[Arm], items: Sequence[Item], seeds: Sequence[int], repeats: int
) -> list[Cell]:
    """Every request: item by item the policies, those that say the same once; tasks take turns."""
    different = list({arm.digest: arm for arm in arms}.values())
    rounds = ((seed, repeat) for repeat in range(repeats) for seed in seeds)
    return [
        Cell(arm, item, seed, repeat)
        for seed, repeat in rounds
        for item in sorted(items, key=lambda item: item.number)
        for arm in different
    ]


class Bench:
    """The models of an experiment's policies, and a pipeline for each policy.

    `folder` keeps what is learned of latency; `costs` are those of an earlier run there, by
    `models_key`, so that it goes on from where that one was.
    """

    def __init__(
        self,
        folder: Path | None = None,
        costs: Mapping[str, Any] | None = None,
        load: LoadModels | None = None,
    ) -> None:
        self._folder, self._load = folder, load or load_models
        self.costs = {key: costs_from_json(values) for key, values in (costs or {}).items()}
        self._pipelines: dict[str, Pipeline] = {}
        self._models: dict[str, tuple[Models, History]] = {}

    def pipeline(self, arm: Arm) -> Pipeline:
        """The policy's, loading its models the first time; not to be asked first by two threads."""
        if arm.digest not in self._pipelines:
            key = models_key(arm.policy)
            if key not in self._models:
                chosen = arm.policy.models
                models = self._load(chosen.drafter, chosen.refiner)
                measured = load_or_measure(arm.policy, models.drafter, models.refiner).costs
                costs = self.costs.setdefault(key, measured)
                file = history_path(self._folder, key) if self._folder else None
                self._models[key] = models, History(costs, file)
            models, history = self._models[key]
            made = Pipeline(arm.policy, models, self.costs[key], history=history)
            self._pipelines[arm.digest] = made
        return self._pipelines[arm.digest]

    def save(self) -> None:
        """Keep what was learned of latency."""
        for _, history in self._models.values():
            history.save()

    def predicted_s(self, cells: Sequence[Cell]) -> float:
        """Seconds that the requests will take, one at a time, by their plans' medians."""
        total = 0.0
        for cell in cells:
            plan = self.pipeline(cell.arm).plan(cell.request)[1]
            total += plan.predicted.latency_p50_s
        return total


def models_key(policy: Policy) -> str:
    """Equal for policies with the same models."""
    return hashlib.sha256(policy.models.model_dump_json().encode()).hexdigest()[:8]


def history_path(folder: Path, key: str) -> Path:
    """Where an experiment keeps what it learned of the latency of a pair of models."""
    return folder / f"latency-{key}.json"


def run_cells(
    cells: Sequence[Cell],
    bench: Bench,
    recorder: Recorder,
    load: Load,
    done: Callable[[Record], None] = lambda record: None,
) -> None:
    """Make the requests and record each as it is answered; errors of a request are recorded too.

    Every policy first answers one that is not recorded, because the first is slower. Interrupted,
    it waits for nothing: what is not recorded is made by the next run, and so is what ended with an
    error or could not be judged.
    """
    for cell in {cell.arm.digest: cell for cell in cells}.values():
        answer(bench.pipeline(cell.arm), cell)
    stop, writing = CancelFlag(), threading.Lock()
    # Python's own waiting for futures may be interrupted with a lock held that workers then need
    finished: SimpleQueue[BaseException | None] = SimpleQueue()

    def work(cell: Cell) -> None:
        try:
            record = answer(bench.pipeline(cell.arm), cell, stop)
            with writing:
                if not stop.is_set():
                    recorder.add(record)
                    done(record)
        except BaseException as error:  # raised again by the thread that waits
            finished.put(error)
        else:
            finished.put(None)

    workers = load.clients if load.rate is None else _MOST_AT_ONCE
    pool = ThreadPoolExecutor(workers, "hybrid-experiment")
    in_flight = 0
    try:
        for cell in _arrivals(cells, load):
            pool.submit(work, cell)
            in_flight += 1
            if in_flight >= 2 * workers:
                _raise(finished.get())
                in_flight -= 1
        for _ in range(in_flight):
            _raise(finished.get())
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        bench.save()


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error


def answer(pipeline: Pipeline, cell: Cell, cancelled: CancelFlag | None = None) -> Record:
    """One request under one policy, judged."""
    item, arm = cell.item, cell.arm
    empty = Record(
        key=cell.key,
        arm=arm.name,
        policy=arm.digest,
        task=item.task,
        item=item.number,
        seed=cell.seed,
        repeat=cell.repeat,
        prompt=item.prompt,
        reference=item.reference,
        scorer=item.scorer,
        started=time.time(),
        hardware=_machine(),
        canvas_length=pipeline.models.drafter.canvas_length if pipeline.models.drafter else 0,
    )
    try:
        result = pipeline.answer(cell.request, lambda event: None, cancelled)
    except Exception as error:  # a backend may raise anything; the others' requests go on
        return replace(empty, error=f"{type(error).__name__}: {error}")
    return _judge(_fill(empty, result, arm.policy), item, result, pipeline)


@cache
def _machine() -> str:
    return hardware()


def _fill(record: Record, result: Result, policy: Policy) -> Record:
    plan, timing, draft = result.plan, result.timing, result.draft
    verdict, refinement = result.verdict, result.refinement
    judged = verdict if verdict is not None and math.isfinite(verdict.min_logprob) else None
    return replace(
        record,
        text=result.text,
        draft_text=draft.text if draft else None,
        seconds=timing.total_s,
        draft_s=timing.draft_s,
        refine_s=timing.refine_s,
        predicted_p50_s=timing.predicted_p50_s,
        predicted_p95_s=timing.predicted_p95_s,
        budget_s=timing.budget_s,
        label=plan.label,
        cap=plan.draft.max_denoising_steps if plan.draft else None,
        mode=plan.refine.mode,
        settings=arm_settings(plan, policy),
        rule=plan.rule,
        finish_reason=result.finish_reason,
        tokens=len(result.token_ids),
        prompt_tokens=result.usage.prompt_tokens,
        steps=result.usage.denoising_steps,
        passes=result.usage.refiner_passes,
        draft_tokens=len(draft.token_ids) if draft else 0,
        accepted_tokens=refinement.accepted_tokens if refinement else None,
        is_accepted=verdict.accepted if verdict else None,
        canvases=tuple((c.steps, c.converged, c.mean_entropy) for c in draft.canvases)
        if draft
        else (),
        is_whole=draft.finish_reason == "stop" if draft else None,
        mean_logprob=judged.mean_logprob if judged else None,
        least_logprob=judged.min_logprob if judged else None,
        notes=result.notes,
    )


def arm_settings(plan: Plan, policy: Policy) -> dict[str, Any]:
    """All of a plan that decides its answer: equal settings, equal answers for the same seed."""
    mode, models = MODES[plan.refine.mode], policy.models
    reads_refiner = mode.needs_refiner or (
        mode.cost.reads == "scorer" and plan.refine.scorer == "refiner"
    )
    refine = {name: getattr(plan.refine, name) for name in _MATTERS[plan.refine.mode]}
    drafter, refiner = models.drafter, models.refiner
    return {
        "draft": asdict(plan.draft) if plan.draft else None,
        "refine": {"mode": plan.refine.mode, **refine},
        "max_new_tokens": plan.max_new_tokens,
        "drafter": _arithmetic(drafter) if drafter and plan.draft else None,
        "refiner": _arithmetic(refiner) if refiner and reads_refiner else None,
    }


def _arithmetic(model: ModelSection) -> list[str]:
    """What decides a model's numbers, as far as a policy does."""
    rounded = [model.activations] if model.activations != "float" else []
    return [model.backend, model.model, *rounded]


def _judge(record: Record, item: Item, result: Result, pipeline: Pipeline) -> Record:
    """With scores of answer and draft, or what the scorer raised."""
    try:
        if item.scorer == LIKELIHOOD:
            return replace(record, score=_likelihood(pipeline, item.prompt, result.token_ids))
        score = find_scorer(item.scorer)
        of_answer = float(score(item.prompt, item.reference, record.text))
        of_draft = None
        if record.draft_text is not None:
            same = record.draft_text == record.text
            drafted = of_answer if same else score(item.prompt, item.reference, record.draft_text)
            of_draft = float(drafted)
        if not math.isfinite(of_answer):
            raise ValueError(f"the scorer said {of_answer}")
    except (Exception, SystemExit) as error:  # whatever a scorer raises, a user's above all
        return replace(record, score_error=f"{type(error).__name__}: {error}")
    return replace(record, score=of_answer, draft_score=of_draft)


def _likelihood(pipeline: Pipeline, prompt: str, token_ids: Sequence[int]) -> float:
    """The refiner's probability a token of the answer: the mean log-probability's exponential."""
    refiner = pipeline.models.refiner
    if refiner is None:
        raise ValueError("scorer likelihood needs models.refiner, which is null")
    if not token_ids:
        return 0.0
    session = refiner.open(Request(messages=(Message("user", prompt),)), len(token_ids))
    logprobs = session.score(token_ids).logprobs
    return math.exp(sum(logprobs) / len(logprobs))


def _arrivals(cells: Sequence[Cell], load: Load) -> Iterator[Cell]:
    """The cells, each when its time has come; a Poisson stream is the same every time."""
    rng, due = random.Random(0), time.monotonic()
    for cell in cells:
        if load.rate is not None:
            due += rng.expovariate(load.rate)
            time.sleep(max(0.0, due - time.monotonic()))
        yield cell
