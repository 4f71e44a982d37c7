"""Running an experiment: every policy on every item, except what is recorded already.

Policies alternate item by item, so that a disturbance of the machine slows all of them alike, and
tasks alternate too, so that a run that is stopped early has records of all of them. Policies with
the same models share them and their latency model.
"""

import hashlib
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from hybrid.backends import Models, load_models
from hybrid.deadline import CancelFlag
from hybrid.experiments.conditions import Condition
from hybrid.experiments.definition import Load
from hybrid.experiments.items import Item
from hybrid.experiments.plan_settings import plan_settings
from hybrid.experiments.records import Record, Recorder, request_key
from hybrid.experiments.scorers import Scorers
from hybrid.experiments.scoring import score_record
from hybrid.pipeline import Pipeline
from hybrid.policies.calibration import load_or_measure
from hybrid.policies.history import History
from hybrid.policies.measurements import costs_from_json, hardware
from hybrid.policies.schema import Policy
from hybrid.requests import make_request
from hybrid.types import Request, Result

_SEEDS_APART, _MOST_AT_ONCE = 1_000_003, 256
LoadModels = Callable[..., Models]


@dataclass(frozen=True, slots=True)
class Trial:
    """One request to be made: an item under a condition, with a seed."""

    condition: Condition
    item: Item
    seed: int
    repeat: int

    @property
    def key(self) -> str:
        """See `request_key`."""
        return request_key(self.condition.digest, self.item.digest, self.seed, self.repeat)

    @property
    def request(self) -> Request:
        """Its random numbers are its own, and the same under every policy.

        The task is named to policies that know it.
        """
        item = self.item
        task = item.task if item.task in self.condition.policy.tasks else None
        seed = self.seed * _SEEDS_APART + item.number
        return make_request(item.question, {"task": task, "seed": seed})


def list_trials(
    conditions: Sequence[Condition], items: Sequence[Item], seeds: Sequence[int], repeats: int
) -> list[Trial]:
    """Every request: item by item all policies, equal ones once; tasks alternate."""
    different = list({condition.digest: condition for condition in conditions}.values())
    rounds = ((seed, repeat) for repeat in range(repeats) for seed in seeds)
    return [
        Trial(condition, item, seed, repeat)
        for seed, repeat in rounds
        for item in sorted(items, key=lambda item: item.number)
        for condition in different
    ]


class Pipelines:
    """A pipeline for each policy of an experiment, and the models that they share.

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

    def pipeline(self, condition: Condition) -> Pipeline:
        """The policy's, loading its models the first time; not to be asked first by two threads."""
        if condition.digest not in self._pipelines:
            key = models_key(condition.policy)
            if key not in self._models:
                chosen = condition.policy.models
                models = self._load(chosen.drafter, chosen.refiner)
                measured = load_or_measure(condition.policy, models.drafter, models.refiner).costs
                costs = self.costs.setdefault(key, measured)
                file = history_path(self._folder, key) if self._folder else None
                self._models[key] = models, History(costs, file)
            models, history = self._models[key]
            made = Pipeline(condition.policy, models, self.costs[key], history=history)
            self._pipelines[condition.digest] = made
        return self._pipelines[condition.digest]

    def save(self) -> None:
        """Keep what was learned of latency."""
        for _, history in self._models.values():
            history.save()

    def predicted_s(self, trials: Sequence[Trial]) -> float:
        """Seconds that the requests will take, one at a time, by their plans' medians."""
        total = 0.0
        for trial in trials:
            plan = self.pipeline(trial.condition).plan(trial.request)[1]
            total += plan.predicted.latency_p50_s
        return total


def models_key(policy: Policy) -> str:
    """Equal for policies with the same models."""
    return hashlib.sha256(policy.models.model_dump_json().encode()).hexdigest()[:8]


def history_path(folder: Path, key: str) -> Path:
    """Where an experiment keeps what it learned of the latency of a pair of models."""
    return folder / f"latency-{key}.json"


def run_trials(
    trials: Sequence[Trial],
    pipelines: Pipelines,
    scorers: Scorers,
    recorder: Recorder,
    load: Load,
    done: Callable[[Record], None] = lambda record: None,
) -> None:
    """Make the requests and record each as it is answered; errors of a request are recorded too.

    Every policy first answers one that is not recorded, because the first is slower. Interrupted,
    it waits for nothing: what is not recorded is made by the next run, and so is what ended with an
    error or could not be scored.
    """
    for trial in {trial.condition.digest: trial for trial in trials}.values():
        answer(pipelines.pipeline(trial.condition), trial, scorers)
    stop, writing = CancelFlag(), threading.Lock()
    # Python's own waiting for futures may be interrupted with a lock held that workers then need
    finished: SimpleQueue[BaseException | None] = SimpleQueue()

    def work(trial: Trial) -> None:
        try:
            record = answer(pipelines.pipeline(trial.condition), trial, scorers, stop)
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
        for trial in _arrivals(trials, load):
            pool.submit(work, trial)
            in_flight += 1
            if in_flight >= 2 * workers:
                _raise(finished.get())
                in_flight -= 1
        for _ in range(in_flight):
            _raise(finished.get())
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        pipelines.save()


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error


def answer(
    pipeline: Pipeline, trial: Trial, scorers: Scorers, cancelled: CancelFlag | None = None
) -> Record:
    """One request under one policy, answered and scored."""
    item, condition = trial.item, trial.condition
    empty = Record(
        key=trial.key,
        condition=condition.name,
        policy=condition.digest,
        task=item.task,
        item=item.number,
        seed=trial.seed,
        repeat=trial.repeat,
        prompt=item.prompt,
        reference=item.reference,
        scorer=item.scorer,
        started=time.time(),
        item_id=item.id,
        messages=item.messages,
        metadata=item.metadata,
        hardware=_machine(),
        canvas_length=pipeline.models.drafter.canvas_length if pipeline.models.drafter else 0,
    )
    try:
        result = pipeline.answer(trial.request, lambda event: None, cancelled)
    except Exception as error:  # a backend may raise anything; the others' requests go on
        return replace(empty, error=f"{type(error).__name__}: {error}")
    filled = _fill(empty, result, condition.policy)
    return score_record(filled, item, result.token_ids, pipeline.models.refiner, scorers)


@cache
def _machine() -> str:
    return hardware()


def _fill(record: Record, result: Result, policy: Policy) -> Record:
    plan, timing, draft = result.plan, result.timing, result.draft
    verdict, refinement = result.verdict, result.refinement
    scored = verdict if verdict is not None and math.isfinite(verdict.min_logprob) else None
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
        max_steps=plan.draft.max_denoising_steps if plan.draft else None,
        mode=plan.refine.mode,
        settings=plan_settings(plan, policy),
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
        is_complete=draft.finish_reason == "stop" if draft else None,
        mean_logprob=scored.mean_logprob if scored else None,
        min_logprob=scored.min_logprob if scored else None,
        notes=result.notes,
    )


def _arrivals(trials: Sequence[Trial], load: Load) -> Iterator[Trial]:
    """The trials, each at its arrival time; a Poisson stream is the same every time."""
    rng, due = random.Random(0), time.monotonic()
    for trial in trials:
        if load.rate is not None:
            due += rng.expovariate(load.rate)
            time.sleep(max(0.0, due - time.monotonic()))
        yield trial
