"""A request's life through the pipeline, with scripted models."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

import pytest

from hybrid.backends import Models
from hybrid.deadline import CancelFlag, Deadline
from hybrid.drafters.scripted import ScriptedDrafter
from hybrid.errors import BackendError, Cancelled, CapabilityError, DeadlineExceeded, RequestError
from hybrid.pipeline import Pipeline
from hybrid.policies.history import History
from hybrid.policies.latency import LatencyModel
from hybrid.policies.loader import parse_policy
from hybrid.protocols import DraftJob
from hybrid.refiners.scripted import ScriptedRefiner
from hybrid.requests import make_request
from hybrid.types import (
    CheckOutcome,
    Denoised,
    Draft,
    Drafted,
    Event,
    Finished,
    Patched,
    Planned,
    Request,
    Result,
    Written,
)

ANSWERS = {"say it": "the quick brown fox", "sort": "1 2 3"}
COSTS = LatencyModel(
    overhead_s=0.0,
    prefill_s=0.001,
    prefill_token_s=0.0,
    step_s=0.001,
    commit_s=0.001,
    read_s=0.001,
    read_token_s=0.0,
    token_s=0.001,
    spread=1.2,
    canvas_length=64,
)


def make_pipeline(
    refine: str = "none",
    steps: str = "4",
    drafter: ScriptedDrafter | None = None,
    fails_at: Literal["score", "continue"] | None = None,
    on_deadline: str = "return_draft",
    recognise: Any = None,
) -> Pipeline:
    policy = parse_policy(
        f"version: 1\non_deadline: {on_deadline}\n"
        f"defaults: {{draft: {{max_denoising_steps: {steps}}}, refine: {{mode: {refine}}}}}\n",
        "test",
    )
    refiner = ScriptedRefiner(ANSWERS, fails_at)
    models = Models(drafter or ScriptedDrafter(ANSWERS), refiner, recognise)
    return Pipeline(policy, models, COSTS)


def run(pipeline: Pipeline, prompt: str = "say it", **options: Any) -> tuple[Result, list[Event]]:
    events: list[Event] = []
    result = pipeline.answer(make_request(prompt, options), events.append)  # type: ignore[arg-type]
    return result, events


def test_the_events_come_in_the_order_of_a_requests_life() -> None:
    result, events = run(make_pipeline("verify", steps="2"))
    kinds = [type(event) for event in events]
    written = sum(kind is Written for kind in kinds)
    assert kinds == [Planned, Denoised, Denoised, Drafted, *[Written] * written, Patched, Finished]
    texts = [event.text for event in events if isinstance(event, Written)]
    assert len({*texts}) == len(texts) > 1
    assert all(result.text.startswith(text) for text in texts)
    assert events[-1] == Finished(result)


def test_a_draft_with_enough_steps_is_the_answer() -> None:
    result, _ = run(make_pipeline(), seed=5)
    assert result.text == "the quick brown fox"
    assert result.finish_reason == "stop"
    assert result.refinement is None
    assert result.usage.denoising_steps == 4
    assert result.usage.completion_tokens == len("the quick brown fox") + 1
    assert result.seed == 5


def test_verify_repairs_a_draft_of_too_few_steps() -> None:
    result, _ = run(make_pipeline("verify", steps="1"))
    assert result.draft is not None
    assert result.draft.text.startswith("the q??")
    assert result.text == "the quick brown fox"
    assert result.refinement is not None
    assert result.refinement.accepted_tokens == 5
    assert result.verdict is not None


def test_generate_drafts_nothing() -> None:
    result, events = run(make_pipeline("generate"))
    assert result.text == "the quick brown fox"
    assert result.draft is None
    assert result.usage.denoising_steps == 0
    texts = [event.text for event in events[1:-1] if isinstance(event, Written)]
    assert len(texts) == len(events) - 2
    assert texts == [result.text[: length + 1] for length in range(len(texts))]


@pytest.mark.parametrize("stage", ["score", "continue"])
def test_a_failing_refiner_leaves_the_draft_standing(stage: Literal["score", "continue"]) -> None:
    result, _ = run(make_pipeline("verify", steps="2", fails_at=stage))
    assert result.draft is not None
    assert result.text == result.draft.text
    assert any("scripted failure" in note for note in result.notes)


def test_a_failing_refiner_leaves_a_draft_of_one_step_where_none_was_planned() -> None:
    result, _ = run(make_pipeline("generate", fails_at="continue"))
    assert result.draft is not None and result.draft.steps == 1
    assert result.text == result.draft.text != ""
    assert any("scripted failure" in note for note in result.notes)
    assert any("draft of one step" in note for note in result.notes)


def test_a_failing_refiner_without_a_drafter_is_an_error() -> None:
    made = make_pipeline("generate", fails_at="continue")
    made = Pipeline(made.policy, replace(made.models, drafter=None), COSTS)
    with pytest.raises(BackendError, match="scripted failure"):
        run(made)


def test_a_failing_drafter_is_an_error() -> None:
    with pytest.raises(BackendError, match="scripted failure"):
        run(make_pipeline(drafter=ScriptedDrafter(ANSWERS, fails=True)))


def test_the_deadline_returns_the_best_draft_so_far() -> None:
    slow = ScriptedDrafter(ANSWERS, steps_needed=10, step_s=0.02)
    result, _ = run(make_pipeline("verify", steps="10", drafter=slow), budget="50ms")
    assert result.finish_reason == "budget"
    assert result.draft is not None
    assert 1 <= result.draft.steps < 10
    assert result.text == result.draft.text
    assert any("no time was left" in note for note in result.notes)


def test_the_policy_may_forbid_a_cut_answer() -> None:
    slow = ScriptedDrafter(ANSWERS, steps_needed=10, step_s=0.02)
    with pytest.raises(DeadlineExceeded):
        run(make_pipeline(steps="10", drafter=slow, on_deadline="fail"), budget="50ms")


def test_cancelling_stops_within_a_step() -> None:
    cancelled, steps = CancelFlag(), []

    def emit(event: Event) -> None:
        if isinstance(event, Denoised):
            steps.append(event.step)
            cancelled.set()

    with pytest.raises(Cancelled):
        make_pipeline().answer(make_request("say it", {}), emit, cancelled)
    assert steps == [1]


def test_cancelling_while_refining_is_not_a_failed_refiner() -> None:
    cancelled = CancelFlag()

    def emit(event: Event) -> None:
        if isinstance(event, Drafted):
            cancelled.set()

    with pytest.raises(Cancelled):
        make_pipeline("verify", steps="1").answer(make_request("say it", {}), emit, cancelled)


def test_a_seed_is_drawn_and_named_where_none_is_given() -> None:
    seeds = {run(make_pipeline())[0].seed for _ in range(4)}
    assert len(seeds) == 4


class ThinkingDrafter(ScriptedDrafter):
    def draft(self, jobs: Sequence[DraftJob]) -> list[Draft]:
        return [replace(draft, thought="drafted so") for draft in super().draft(jobs)]


class ThinkingRefiner(ScriptedRefiner):
    def decode_thought(self, token_ids: Sequence[int]) -> str:
        return "refined so"


@pytest.mark.parametrize(
    ("mode", "prompt", "thought"),
    [
        ("none", "say it", "drafted so"),
        ("score", "say it", "drafted so"),
        ("generate", "say it", "refined so"),
    ],
)
def test_a_thought_has_a_field_of_its_own(mode: str, prompt: str, thought: str) -> None:
    pipeline = make_pipeline(mode, drafter=ThinkingDrafter(ANSWERS))
    models = replace(pipeline.models, refiner=ThinkingRefiner(ANSWERS))
    result, _ = run(replace(pipeline, models=models), prompt)
    assert result.thought == thought
    assert thought not in result.text


def test_a_prompt_outside_the_models_tasks_is_noted() -> None:
    pipeline = make_pipeline()
    models = replace(pipeline.models, note=lambda p: "" if p == "sort" else f"{p}: unknown")
    pipeline = replace(pipeline, models=models)
    assert run(pipeline, "sort")[0].notes == ()
    assert run(pipeline, "say it")[0].notes == ("say it: unknown",)


def test_timing_adds_up_and_names_what_was_predicted() -> None:
    result, _ = run(make_pipeline("verify", steps="2"), budget="5s")
    timing = result.timing
    assert timing.budget_s == 5.0
    assert timing.within_budget
    parts = timing.plan_s + timing.draft_s + timing.refine_s
    assert 0 < parts <= timing.total_s
    assert timing.predicted_p50_s == result.plan.predicted.latency_p50_s


def test_planning_runs_no_model() -> None:
    pipeline = make_pipeline("verify", drafter=ScriptedDrafter(ANSWERS, fails=True))
    signals, plan = pipeline.plan(make_request("say it", {}))
    assert signals.prompt_tokens == len("say it")
    assert plan.refine.mode == "verify"


def test_a_policy_without_models_cannot_answer() -> None:
    pipeline = replace(make_pipeline(), models=Models(None, None))
    with pytest.raises(CapabilityError):
        run(pipeline)


def test_overrides_that_cannot_be_followed_fail_before_anything_runs() -> None:
    pipeline = make_pipeline("generate", drafter=ScriptedDrafter(ANSWERS, fails=True))
    with pytest.raises(RequestError, match="max_denoising_steps"):
        run(pipeline, max_denoising_steps=3)


def test_a_task_given_by_name_is_put_into_the_models_own_words() -> None:
    pipeline = make_pipeline()
    models = replace(pipeline.models, phrase=lambda task, prompt: f"{task} {prompt}")
    policy = parse_policy("version: 1\ntasks: {say: {}}\n", "test")
    pipeline = replace(pipeline, models=models, policy=policy)
    result, _ = run(pipeline, "it", task="say")
    assert result.text == "the quick brown fox"
    assert result.notes == ("read as 'say it'",)


def test_a_pipeline_with_a_history_learns_from_every_answer() -> None:
    history = History(COSTS)
    pipeline = replace(make_pipeline("generate"), history=history)
    for _ in range(10):
        run(pipeline)
    assert history.requests == 10
    expected = pipeline.plan(Request("say it"))[1].predicted
    assert expected != make_pipeline("generate").plan(Request("say it"))[1].predicted
    tokens = len(ANSWERS["say it"]) + 1
    assert history.latency.lengths(None, 6, 0, 99, 256).p50 == tokens


def test_an_answer_that_the_policy_refuses_is_learned_from_too() -> None:
    drafter = ScriptedDrafter(ANSWERS, steps_needed=50, step_s=0.002)
    pipeline = make_pipeline(steps="50", drafter=drafter, on_deadline="fail")
    history = History(COSTS)
    with pytest.raises(DeadlineExceeded):
        run(replace(pipeline, history=history), budget="10ms")
    assert history.requests == 1


def test_checks_are_judged_on_the_draft_and_on_the_answer() -> None:
    drafter = ScriptedDrafter({"say it": "the quick dog"})
    refiner = ScriptedRefiner({"say it": "the quick fox"})
    models = Models(drafter, refiner)

    def answer(mode: str, *checks: Any) -> Result:
        request = make_request("say it", {"refine": mode, "checks": checks})
        policy = parse_policy("version: 1\n", "test")
        return Pipeline(policy, models, COSTS).answer(request, lambda event: None)

    passing = answer("cascade", {"contains": "dog"})
    assert passing.checks == (CheckOutcome("contains 'dog'", None),)
    assert passing.signals.constraints == 1

    mended = answer("verify", {"contains": "fox"})
    assert mended.text == "the quick fox"
    assert mended.verdict is not None
    assert mended.verdict.failed_checks == ("contains 'fox'",)
    assert mended.checks[0].passed

    broken = answer("verify", {"contains": "dog"})
    assert broken.text == "the quick fox"  # exactly the refiner's answer is what verify promises
    assert not broken.checks[0].passed


def test_a_failed_check_makes_a_cascade_go_on() -> None:
    models = Models(
        ScriptedDrafter({"say it": "the quick dog"}), ScriptedRefiner({"say it": "the quick fox"})
    )
    policy = parse_policy(
        "version: 1\ndefaults: {refine: {mode: cascade, min_mean_logprob: -99}}\n", "test"
    )

    def answer(*checks: Any) -> Result:
        request = make_request("say it", {"checks": checks})
        return Pipeline(policy, models, COSTS).answer(request, lambda event: None)

    assert answer().text == "the quick dog"
    assert answer({"contains": "fox"}).text == "the quick fox"
    harmed = answer({"contains": "dog"}, {"contains": "fox"})
    assert harmed.text == "the quick dog"
    assert any("refining broke contains 'dog'" in note for note in harmed.notes)


def test_an_answer_that_repeats_itself_is_reported() -> None:
    looping = ScriptedDrafter({"say it": "and so on " * 6, "sort": "1 2 3"})
    result, _ = run(make_pipeline(drafter=looping))
    assert any(note.startswith("the answer repeats itself: ") for note in result.notes)
    assert not run(make_pipeline())[0].notes


def test_a_deterministic_plan_depends_neither_on_load_nor_on_the_clock() -> None:
    policy = parse_policy(
        "version: 1\ndefaults: {budget: 200ms, refine: {mode: [none, verify]},"
        " draft: {max_denoising_steps: {from: 1, to: 20}}}\n"
        "rules: [{name: busy, when: {load: {above: 3}}, draft: {max_denoising_steps: 1}}]\n",
        "test",
    )
    history = History(COSTS)
    pipeline = replace(make_pipeline(), policy=policy, history=history)
    free, asked = Request("say it"), Request("say it", deterministic=True)
    before = pipeline.plan(asked)[1]
    for _ in range(30):
        result = pipeline.answer(free)
        slow = replace(result.timing, total_s=50 * result.timing.predicted_p50_s)
        history.learn(replace(result, timing=slow))
    always = replace(pipeline, policy=policy.model_copy(update={"deterministic": True}))
    with ExitStack() as others:
        for _ in range(5):
            others.enter_context(pipeline.capacity.admission.admitted(Deadline.after(9.0), 0.001))
        assert pipeline.plan(asked)[1] == before
        assert pipeline.plan(free)[1] != before
        assert always.plan(free)[1] == before
