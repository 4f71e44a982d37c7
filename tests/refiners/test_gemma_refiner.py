"""The refiner on the native stack: lossless where it says so, and nothing read twice."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from hybrid.deadline import Deadline
from hybrid.drafters.diffusion_gemma import DiffusionGemmaDrafter
from hybrid.embedded import weights_path
from hybrid.embedded.tasks import TASKS, evaluation_set
from hybrid.errors import RequestError
from hybrid.gemma.twin import load_twin
from hybrid.protocols import DraftJob
from hybrid.refiners.gemma import GemmaRefiner
from hybrid.refiners.refine import refine
from hybrid.types import Canvas, Draft, DraftParams, RefineParams, Request

ANSWER_LIMIT = 32


@pytest.fixture(scope="module")
def refiner() -> GemmaRefiner:
    return GemmaRefiner.from_directory(weights_path("refiner"))


@pytest.fixture(scope="module")
def drafter() -> DiffusionGemmaDrafter:
    return DiffusionGemmaDrafter.from_directory(weights_path("drafter"))


def as_draft(refiner: GemmaRefiner, token_ids: Sequence[int]) -> Draft:
    entropy = (0.0,) * len(token_ids)
    return Draft(
        tuple(token_ids), refiner.decode(token_ids), entropy, (Canvas(1, True, 0.0),), "stop"
    )


def greedy(refiner: GemmaRefiner, prompt: str) -> tuple[int, ...]:
    session = refiner.open(Request(prompt), ANSWER_LIMIT)
    return session.continue_greedily((), ANSWER_LIMIT, Deadline())[0]


def verified(refiner: GemmaRefiner, prompt: str, draft: Draft) -> Any:
    params = RefineParams("verify")
    _, refinement = refine(refiner, Request(prompt), draft, params, ANSWER_LIMIT, Deadline())
    return refinement


@pytest.mark.parametrize("task", TASKS)
def test_verify_equals_greedy_decoding_on_every_prompt(
    task: str, refiner: GemmaRefiner, drafter: DiffusionGemmaDrafter
) -> None:
    """Thirty prompts a task: real drafts, the answer itself, and the answer damaged at random."""
    rng = random.Random(task)
    vocabulary = refiner.model.config.vocab_size
    instances = evaluation_set(task, 30)
    jobs = [
        DraftJob(Request(i.prompt), DraftParams(max_denoising_steps=2), seed, 32, Deadline())
        for seed, i in enumerate(instances)
    ]
    for instance, drafted in zip(instances, drafter.draft(jobs), strict=True):
        alone = greedy(refiner, instance.prompt)
        damaged = list(alone)
        damaged[rng.randrange(len(damaged))] = rng.randrange(vocabulary)
        longer = [*alone[:-1], *[rng.randrange(vocabulary) for _ in range(3)]]
        for token_ids in (drafted.token_ids, alone, damaged, longer, alone[:3], ()):
            refinement = verified(refiner, instance.prompt, as_draft(refiner, token_ids))
            assert refinement.token_ids == alone
            assert refinement.guarantee == "lossless"
            assert refinement.text == refiner.decode(alone)


def test_a_right_draft_costs_one_pass(refiner: GemmaRefiner) -> None:
    prompt = evaluation_set("summarize", 1)[0].prompt
    alone = greedy(refiner, prompt)
    refinement = verified(refiner, prompt, as_draft(refiner, alone))
    assert refinement.forward_passes == 1
    assert refinement.accepted_tokens == len(alone)
    assert refinement.edits == ()


def test_greedy_decoding_equals_transformers(refiner: GemmaRefiner) -> None:
    twin = load_twin(weights_path("refiner"))
    for task in TASKS:
        for instance in evaluation_set(task, 5):
            messages = Request(instance.prompt).conversation
            ids = refiner.tokenizer.encode_conversation(messages)
            with torch.inference_mode():
                output = twin.generate(
                    torch.tensor([ids]), max_new_tokens=ANSWER_LIMIT, do_sample=False
                )
            assert tuple(output[0, len(ids) :].tolist()) == greedy(refiner, instance.prompt)


def test_scores_are_log_probabilities_of_one_pass(refiner: GemmaRefiner) -> None:
    prompt = "sort up: 4 8 1 9 3"
    token_ids = refiner.tokenizer.encode("1 3 4 8 9")
    session = refiner.open(Request(prompt), 16)
    whole = session.score(token_ids)
    assert session.forward_passes == 1
    assert len(whole.choices) == len(token_ids) + 1
    stepwise = refiner.open(Request(prompt), 16)
    first = stepwise.score(token_ids[:2])
    rest = stepwise.score(token_ids[2:])
    assert first.logprobs + rest.logprobs == pytest.approx(whole.logprobs, abs=1e-4)
    assert first.choices[:-1] + rest.choices == whole.choices


class CountingRefiner(GemmaRefiner):
    """Counts the tokens of every pass."""

    passes: list[int]

    def open(self, request: Request, max_answer_tokens: int) -> Any:
        self.passes = []
        model, encode = self.model, type(self.model).encode

        def counted(token_ids: torch.Tensor, *rest: Any) -> torch.Tensor:
            self.passes.append(token_ids.shape[1])
            return encode(model, token_ids, *rest)

        model.encode = counted  # type: ignore[method-assign, assignment]
        return super().open(request, max_answer_tokens)


def test_nothing_is_read_twice() -> None:
    counting = CountingRefiner.from_directory(weights_path("refiner"))
    prompt = evaluation_set("summarize", 1)[0].prompt
    alone = greedy(counting, prompt)
    damaged = (*alone[:4], 50, *alone[5:])
    refinement = verified(counting, prompt, as_draft(counting, damaged))
    prompt_tokens = counting.count_prompt_tokens(Request(prompt))
    assert counting.passes[0] == prompt_tokens + len(damaged)
    assert counting.passes[1:] == [1] * (len(refinement.token_ids) - 4 - 1)
    assert sum(counting.passes[1:]) == refinement.forward_passes - 1


def test_rewinding_forgets_what_was_read(refiner: GemmaRefiner) -> None:
    token_ids = refiner.tokenizer.encode("1 3 4 8 9")
    session = refiner.open(Request("sort up: 4 8 1 9 3"), 16)
    before = session.score(token_ids)
    session.rewind(2)
    again = session.score(token_ids[2:])
    assert again.logprobs == pytest.approx(before.logprobs[2:], abs=1e-4)
    assert again.choices == before.choices[2:]


def test_a_prompt_over_the_context_is_refused(refiner: GemmaRefiner) -> None:
    with pytest.raises(RequestError, match="at most 1023 tokens") as caught:
        refiner.open(Request("cat " * 1100), 8)
    assert caught.value.field == "prompt"


def test_an_answer_ends_at_the_limit(refiner: GemmaRefiner) -> None:
    session = refiner.open(Request(evaluation_set("summarize", 1)[0].prompt), 5)
    token_ids, reason = session.continue_greedily((), 5, Deadline())
    assert (len(token_ids), reason) == (5, "length")


def test_the_deadline_cuts_an_answer(refiner: GemmaRefiner) -> None:
    session = refiner.open(Request(evaluation_set("summarize", 1)[0].prompt), 32)
    token_ids, reason = session.continue_greedily((), 32, Deadline.after(1e-9))
    assert (token_ids, reason) == ((), "budget")
