"""`Hybrid` and `AsyncHybrid` over scripted models."""

import asyncio
import gc
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import pytest

from hybrid import AsyncHybrid, Hybrid
from hybrid.backends import Models
from hybrid.drafters.scripted import ScriptedDrafter
from hybrid.errors import BackendError, Cancelled, PolicyError, RequestError
from hybrid.policies.history import History
from hybrid.policies.latency import LatencyModel
from hybrid.policies.loader import parse_policy
from hybrid.policies.measurements import history_file
from hybrid.policies.watch import WatchedPolicy
from hybrid.protocols import DraftJob
from hybrid.refiners.scripted import ScriptedRefiner
from hybrid.types import Denoised, Draft, Drafted, Finished, Planned, Request, Signals

PROBES = {"add 12 + 34": "46", "add 12 + 34 " * 8: "46"}  # what calibration asks
ANSWERS = {"say it": "the quick brown fox", **PROBES}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def make_hybrid(drafter: ScriptedDrafter | None = None) -> Hybrid:
    policy = parse_policy("version: 1\ndefaults: {draft: {max_denoising_steps: 4}}\n", "test")
    return Hybrid(policy, Models(drafter or ScriptedDrafter(ANSWERS), ScriptedRefiner(ANSWERS)))


def test_generate_answers() -> None:
    with make_hybrid() as hybrid:
        result = hybrid.generate("say it", budget="2s")
    assert result.text == "the quick brown fox"
    assert result.timing.budget_s == 2.0


def test_prompt_tokens_are_counted_without_an_answer() -> None:
    drafter = ScriptedDrafter(ANSWERS)
    assert make_hybrid(drafter).count_prompt_tokens("say what?") == 9


def test_stream_tells_every_step_and_ends_with_the_result() -> None:
    events = list(make_hybrid().stream("say it"))
    kinds = [type(event) for event in events]
    assert kinds == [Planned, *[Denoised] * 4, Drafted, Finished]
    assert [e.step for e in events if isinstance(e, Denoised)] == [1, 2, 3, 4]


def test_a_watched_policy_is_in_force_from_the_next_request_on(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("version: 1\ndefaults: {draft: {max_denoising_steps: 4}}\n")
    models = Models(ScriptedDrafter(ANSWERS), ScriptedRefiner(ANSWERS))
    hybrid = Hybrid(WatchedPolicy(file), models)
    assert hybrid.generate("say it").plan.label == "4 steps"
    file.write_text("version: 1\ndefaults: {draft: {max_denoising_steps: 12}}\n")
    assert hybrid.generate("say it").plan.label == "12 steps"
    file.write_text("version: 1\ndefaults: {}\nbudgt: 1s\n")
    assert hybrid.generate("say it").plan.label == "12 steps"


def test_the_same_models_answer_under_another_policy() -> None:
    hybrid = make_hybrid()
    other = hybrid.under(
        parse_policy("version: 1\ndefaults: {draft: {max_denoising_steps: 9}}", "o")
    )
    assert other.generate("say it").plan.label == "9 steps"
    assert hybrid.generate("say it").plan.label == "4 steps"
    with pytest.raises(RequestError, match="a policy with the models of test"):
        hybrid.under(parse_policy("version: 1\nmodels: {refiner: null}\n", "smaller"))


def test_only_a_file_can_be_watched(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("version: 1\ndescription: mine\n")
    assert Hybrid.from_policy(file, watch=True).policy.description == "mine"
    for policy in ("balanced", parse_policy("version: 1\n", "p")):
        with pytest.raises(RequestError, match="only a policy file can change"):
            Hybrid.from_policy(policy, watch=True)


def test_rules_may_ask_for_the_applications_signals() -> None:
    policy = parse_policy(
        "version: 1\nrules:\n"
        "- {name: gold, when: {signals: {customer: gold}}, draft: {max_denoising_steps: 3}}\n",
        "test",
    )
    models = Models(ScriptedDrafter(ANSWERS), ScriptedRefiner(ANSWERS))
    customer = "gold"
    hybrid = Hybrid(policy, models, signals={"customer": lambda request: customer})
    result = hybrid.generate("say it")
    assert (result.plan.label, result.plan.rule) == ("3 steps", "rule 'gold'")
    assert result.signals.custom == {"customer": "gold"}
    customer = "tin"
    assert hybrid.generate("say it").plan.label == "16 steps"
    broken = Hybrid(policy, models, signals={"customer": lambda request: ["gold"]})  # type: ignore[dict-item, return-value]
    with pytest.raises(RequestError, match="signal customer"):
        broken.generate("say it")


def test_a_rule_may_be_a_function() -> None:
    def patient(request: Request, signals: Signals) -> Mapping[str, object] | None:
        return {"draft": {"max_denoising_steps": 7}} if "say" in request.prompt else None

    policy = parse_policy("version: 1\n", "test")
    models = Models(ScriptedDrafter(ANSWERS), ScriptedRefiner(ANSWERS))
    plan = Hybrid(policy, models, rule=patient).explain("say it")
    assert (plan.label, plan.rule) == ("7 steps", "rule 'patient'")
    with pytest.raises(PolicyError, match="rule <lambda>: steps"):
        Hybrid(policy, models, rule=lambda request, signals: {"steps": 3}).generate("say it")


def test_an_error_reaches_the_streams_reader() -> None:
    hybrid = make_hybrid()
    hybrid.load()
    with pytest.raises(RequestError, match="scripted are"):
        list(hybrid.stream("what?"))


def test_a_cancelled_scope_does_not_wait_for_the_next_event() -> None:
    class Silent(ScriptedDrafter):
        def draft(self, jobs: Sequence[DraftJob]) -> list[Draft]:
            if jobs[0].request.prompt != "say it":
                return super().draft(jobs)
            assert jobs[0].deadline.cancelled.wait(60)
            raise Cancelled("as asked")

    async def run() -> None:
        hybrid = AsyncHybrid(make_hybrid(Silent(ANSWERS)))
        hybrid._hybrid.load()
        with anyio.move_on_after(0.05) as scope:
            async for event in hybrid.stream("say it"):
                assert isinstance(event, Planned)
        assert scope.cancelled_caught

    anyio.run(run)


@dataclass(frozen=True)
class CountingDrafter(ScriptedDrafter):
    """Notes every step that it takes."""

    taken: list[int] = field(default_factory=list)

    def draft(self, jobs: Sequence[DraftJob]) -> list[Draft]:
        return super().draft([replace(job, on_step=self._noting(job.on_step)) for job in jobs])

    def _noting(self, tell: Callable[[Denoised], None] | None) -> Callable[[Denoised], None]:
        def note(event: Denoised) -> None:
            self.taken.append(event.step)
            if tell is not None:
                tell(event)

        return note


def test_closing_a_stream_stops_the_work_and_frees_the_models() -> None:
    drafter = CountingDrafter(ANSWERS, steps_needed=1000, step_s=0.01)
    hybrid = make_hybrid(drafter)
    hybrid.load()
    drafter.taken.clear()
    stream = hybrid.stream("say it", max_denoising_steps=1000)
    assert isinstance(next(stream), Planned)
    assert isinstance(next(stream), Denoised)
    stream.close()
    for thread in threading.enumerate():
        if thread.name == "hybrid-stream":
            thread.join(60)
    assert len(drafter.taken) < 1000
    assert hybrid.generate("say it", max_denoising_steps=1).draft is not None


def test_explain_decides_without_drafting() -> None:
    hybrid = make_hybrid()
    plan = hybrid.explain("say it", max_denoising_steps=3, refine="verify")
    assert plan.label == "3 steps + verify"


def test_a_broken_load_is_told_to_the_caller_and_tried_again() -> None:
    hybrid = make_hybrid(ScriptedDrafter(ANSWERS, fails=True))
    for _ in range(2):
        with pytest.raises(BackendError):
            hybrid.generate("say it")


def test_unknown_policies_and_options_are_refused_at_once() -> None:
    with pytest.raises(PolicyError, match="did you mean 'balanced'"):
        Hybrid.from_policy("balnced")
    with pytest.raises(RequestError, match="did you mean 'budget'"):
        make_hybrid().generate("say it", budgt="1s")  # type: ignore[call-arg]


def test_async_answers_and_streams() -> None:
    async def work() -> None:
        async with AsyncHybrid(make_hybrid()) as hybrid:
            assert (await hybrid.generate("say it")).text == "the quick brown fox"
            kinds = [type(event) async for event in hybrid.stream("say it")]
            assert kinds == [Planned, *[Denoised] * 4, Drafted, Finished]

    asyncio.run(work())


def test_a_cancelled_task_frees_the_models() -> None:
    drafter = CountingDrafter(ANSWERS, steps_needed=1000, step_s=0.01)
    hybrid = make_hybrid(drafter)
    hybrid.load()
    drafter.taken.clear()

    async def work() -> None:
        wrapped = AsyncHybrid(hybrid)
        task = asyncio.create_task(wrapped.generate("say it", max_denoising_steps=1000))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    for thread in threading.enumerate():
        if thread.name == "hybrid-stream":
            thread.join(60)
    assert len(drafter.taken) < 1000
    assert hybrid.generate("say it", max_denoising_steps=1).draft is not None


def test_what_is_learned_is_kept_when_closing() -> None:
    with make_hybrid() as hybrid:
        for _ in range(3):
            hybrid.generate("say it")
        assert hybrid.latency_basis.startswith("measured quickly on 20")
        policy, costs = hybrid.policy, LatencyModel(0, 0, 0, 0, 0, 0, 0, 0, 1, 0)
    assert History(costs, history_file(policy)).requests == 3
    with hybrid:
        hybrid.generate("say it")
    assert History(costs, history_file(policy)).requests == 4


def test_what_is_loaded_is_not_searched_for_garbage() -> None:
    before = gc.get_freeze_count()
    with make_hybrid() as hybrid:
        assert gc.get_freeze_count() == before
        hybrid.load()
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0


def test_many_threads_may_ask_at_once_and_a_batch_keeps_its_order() -> None:
    prompts = ["sort up: 4 8 1 9 3", "add 12 + 34", "in words: 345"] * 5
    with Hybrid.from_policy("balanced") as hybrid:
        alone = [hybrid.generate(prompt, seed=3, refine="none", budget="5s") for prompt in prompts]
        together = hybrid.generate_batch(prompts, seed=3, refine="none", budget="5s")
    assert [r.text for r in together] == [r.text for r in alone]


def test_an_async_batch_keeps_its_order_and_raises_the_first_error() -> None:
    async def ask(prompts: list[str]) -> list[str]:
        async with AsyncHybrid.from_policy("draft_only") as hybrid:
            results = await hybrid.generate_batch(prompts, seed=3)
            return [result.text for result in results]

    texts = asyncio.run(ask(["add 12 + 34", "add 30 + 12"] * 4))
    assert len(set(texts[::2])) == len(set(texts[1::2])) == 1
    with pytest.raises(RequestError, match="prompt"):
        asyncio.run(ask(["add 12 + 34", " "]))


def test_fill_keeps_the_template() -> None:
    with Hybrid.from_policy("draft_only") as hybrid:
        result = hybrid.fill("solve x + y == 11", "x =<blank:1>; y = 7", seed=1)
    assert result.text.startswith("x =")
    assert result.text.endswith("; y = 7")


def test_too_many_requests_at_once_are_refused_at_once_and_may_be_tried_again() -> None:
    drafter = ScriptedDrafter(ANSWERS, steps_needed=1000, step_s=0.01)
    policy = parse_policy("version: 1\ndefaults: {draft: {max_denoising_steps: 4}}\n", "test")
    models = Models(drafter, ScriptedRefiner(ANSWERS))
    hybrid = Hybrid(policy, models, max_in_flight=1).load()
    stream = hybrid.stream("say it", max_denoising_steps=1000)
    assert isinstance(next(stream), Planned)
    with pytest.raises(BackendError, match="1 requests are being answered") as caught:
        hybrid.generate("say it")
    assert caught.value.retryable
    stream.close()
    assert hybrid.generate("say it", max_denoising_steps=1).text


def test_load_is_a_signal_that_rules_may_ask_for() -> None:
    policy = parse_policy(
        "version: 1\nrules:\n"
        "- {name: crowded, when: {load: {above: 0}}, draft: {max_denoising_steps: 1}}\n",
        "test",
    )
    drafter = ScriptedDrafter(ANSWERS, steps_needed=1000, step_s=0.01)
    hybrid = Hybrid(policy, Models(drafter, ScriptedRefiner(ANSWERS))).load()
    assert hybrid.explain("say it").rule == "defaults"
    stream = hybrid.stream("say it")
    assert isinstance(next(stream), Planned)
    assert hybrid.explain("say it").rule == "rule 'crowded'"
    stream.close()


def test_best_of_drafts_several_seeds_together_and_repeats() -> None:
    policy = parse_policy(
        "version: 1\nmodels: {refiner: null}\n"
        "defaults: {draft: {max_denoising_steps: 8}, refine: {mode: best_of, drafts: 3}}\n",
        "test",
    )
    with Hybrid.from_policy(policy) as hybrid:
        result = hybrid.generate("list 5 fruits, not apple or grape", seed=3)
        again = hybrid.generate("list 5 fruits, not apple or grape", seed=3)
        single = [
            hybrid.generate("list 5 fruits, not apple or grape", seed=3 + n, refine="score")
            for n in range(3)
        ]
    assert result.text == again.text
    assert result.refinement is not None
    assert result.refinement.mode == "best_of"
    assert result.draft is not None
    assert result.draft.text == single[0].text
    least = [one.verdict.min_logprob for one in single if one.verdict]
    assert result.text == single[least.index(max(least))].text


def test_repair_holds_the_rest_of_the_answer_and_repeats() -> None:
    policy = parse_policy(
        "version: 1\nmodels: {refiner: null}\ndefaults:\n  draft: {max_denoising_steps: 4}\n"
        "  refine: {mode: repair, min_token_logprob: -2.5}\n",
        "test",
    )
    prompt = "list 5 fruits, not apple or grape"
    with Hybrid.from_policy(policy) as hybrid:
        results = [hybrid.generate(prompt, seed=seed) for seed in range(8)]
        again = hybrid.generate(prompt, seed=3)
    assert again.text == results[3].text
    for result in results:
        assert result.draft is not None and result.refinement is not None
        assert result.usage.denoising_steps >= result.draft.steps
        if result.refinement.edits:
            assert result.verdict is not None
            assert result.verdict.min_logprob > min(result.draft.self_logprobs)
    assert any(result.refinement and result.refinement.edits for result in results)
