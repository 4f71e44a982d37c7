"""The refiner on the native stack: lossless where it says so, and nothing read twice."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid.deadline import Deadline
from hybrid.drafters.diffusion_gemma import DiffusionGemmaDrafter
from hybrid.embedded import weights_path
from hybrid.embedded.tasks import TASKS, evaluation_set
from hybrid.errors import Cancelled, RequestError
from hybrid.gemma.model.gemma import GemmaModel
from hybrid.gemma.reference.huggingface import load_hf_reference
from hybrid.protocols import DraftJob
from hybrid.refiners.context import RefineContext
from hybrid.refiners.gemma import GemmaRefiner
from hybrid.refiners.refine import refine
from hybrid.types import Canvas, Draft, DraftParams, Refinement, RefineMode, RefineParams, Request

ANSWER_LIMIT = 32
PROMPT = evaluation_set("summarize", 1)[0].prompt


class CountingModel(GemmaModel):
    """Counts the tokens that every pass reads."""

    def __init__(self, model: GemmaModel) -> None:
        super().__init__(model.config, model.weights)
        self.passes: list[int] = []

    def encode(self, token_ids: Tensor, *rest: Any) -> Tensor:
        self.passes.append(token_ids.shape[1])
        return super().encode(token_ids, *rest)


@pytest.fixture(scope="module")
def refiner() -> GemmaRefiner:
    return GemmaRefiner.from_directory(weights_path("refiner"))


@pytest.fixture(scope="module")
def drafter() -> DiffusionGemmaDrafter:
    return DiffusionGemmaDrafter.from_directory(weights_path("drafter"))


def greedy(refiner: GemmaRefiner, prompt: str) -> tuple[int, ...]:
    return refiner.open(Request(prompt), ANSWER_LIMIT).write((), ANSWER_LIMIT)[0]


def refined(
    refiner: GemmaRefiner, prompt: str, token_ids: Sequence[int], mode: RefineMode = "verify"
) -> Refinement:
    text, entropy = refiner.decode(token_ids), (0.0,) * len(token_ids)
    draft = Draft(tuple(token_ids), text, entropy, (Canvas(1, True, 0.0),), "stop")
    params = RefineParams(mode, min_token_logprob=-1e-4)
    return refine(RefineContext(Request(prompt), draft, params, ANSWER_LIMIT, Deadline(), refiner))[
        1
    ]


def other_draft(answer: Sequence[int], vocabulary: int, rng: random.Random) -> list[int]:
    """The answer itself, damaged, cut, run on past its end, or nothing of it."""
    noise = [rng.randrange(vocabulary) for _ in range(rng.randrange(ANSWER_LIMIT))]
    damaged = list(answer)
    damaged[rng.randrange(len(damaged))] = rng.randrange(vocabulary)
    cut = [*answer[: rng.randrange(len(answer))]]
    return rng.choice(([*answer], damaged, cut, [*answer, *noise], [*cut, *noise], noise, []))


@pytest.mark.parametrize("task", TASKS)
def test_verify_equals_greedy_decoding_on_every_prompt(
    task: str, refiner: GemmaRefiner, drafter: DiffusionGemmaDrafter
) -> None:
    """Thirty prompts a task, with drafts of two steps and with drafts of all other kinds."""
    rng = random.Random(task)
    instances = evaluation_set(task, 30)
    params = DraftParams(max_denoising_steps=2)
    jobs = [
        DraftJob(Request(instance.prompt), params, seed, ANSWER_LIMIT, Deadline())
        for seed, instance in enumerate(instances)
    ]
    for instance, drafted in zip(instances, drafter.draft(jobs), strict=True):
        alone = greedy(refiner, instance.prompt)
        other = other_draft(alone, refiner.model.config.vocab_size, rng)
        for token_ids in (drafted.token_ids, other):
            refinement = refined(refiner, instance.prompt, token_ids)
            assert refinement.token_ids == alone, (instance.prompt, token_ids)
            assert refinement.text == refiner.decode(alone)
            assert refinement.forward_passes <= len(alone) + 1


def test_greedy_decoding_equals_transformers(refiner: GemmaRefiner) -> None:
    twin = load_hf_reference(weights_path("refiner"))
    for task in TASKS:
        for instance in evaluation_set(task, 3):
            messages = Request(instance.prompt).conversation
            ids = refiner.tokenizer.encode_conversation(messages)
            with torch.inference_mode():
                output = twin.generate(
                    torch.tensor([ids]), max_new_tokens=ANSWER_LIMIT, do_sample=False
                )
            assert tuple(output[0, len(ids) :].tolist()) == greedy(refiner, instance.prompt)


def test_a_right_draft_costs_one_pass(refiner: GemmaRefiner) -> None:
    alone = greedy(refiner, PROMPT)
    refinement = refined(refiner, PROMPT, alone)
    assert refinement.forward_passes == 1
    assert refinement.accepted_tokens == len(alone)
    assert refinement.edits == ()


@pytest.mark.parametrize("mode", ["verify", "cascade"])
def test_nothing_is_read_twice(refiner: GemmaRefiner, mode: RefineMode) -> None:
    assert isinstance(refiner.model, GemmaModel)
    counting = CountingModel(refiner.model)
    refiner = GemmaRefiner(counting, refiner.tokenizer)
    alone = greedy(refiner, PROMPT)
    prompt_tokens = refiner.count_prompt_tokens(Request(PROMPT))
    assert counting.passes == [prompt_tokens] + [1] * (len(alone) - 1)
    counting.passes.clear()
    damaged = (*alone[:4], (alone[4] + 1) % counting.config.vocab_size, *alone[5:])
    refinement = refined(refiner, PROMPT, damaged, mode)
    assert refinement.token_ids == alone
    assert refinement.accepted_tokens == 4
    assert counting.passes == [prompt_tokens + len(damaged)] + [1] * (len(alone) - 4 - 1)
    assert refinement.forward_passes == len(counting.passes)


@pytest.mark.parametrize("mode", ["verify", "cascade"])
def test_a_draft_of_padding_alone_is_rewritten(refiner: GemmaRefiner, mode: RefineMode) -> None:
    refinement = refined(refiner, PROMPT, [refiner.model.config.pad_token_id] * 9, mode)
    assert refinement.token_ids == greedy(refiner, PROMPT)
    assert refinement.accepted_tokens == 0


def test_scores_are_log_probabilities_of_one_pass(refiner: GemmaRefiner) -> None:
    token_ids = refiner.tokenizer.encode("1 3 4 8 9")
    request = Request("sort up: 4 8 1 9 3")
    session = refiner.open(request, 16)
    whole = session.score(token_ids)
    assert session.forward_passes == 1
    assert len(whole.choices) == len(token_ids) + 1
    prompt = refiner.tokenizer.encode_conversation(request.conversation)
    with torch.inference_mode():
        reference = load_hf_reference(weights_path("refiner"))
        logits = reference(torch.tensor([[*prompt, *token_ids]])).logits
    log_p = logits[0, len(prompt) - 1 :].log_softmax(-1)
    expected = [float(row[token]) for row, token in zip(log_p, token_ids, strict=False)]
    assert whole.logprobs == pytest.approx(expected, abs=1e-4)
    assert whole.choices == tuple(log_p.argmax(-1).tolist())


def test_a_session_scores_in_parts_and_rewinds(refiner: GemmaRefiner) -> None:
    token_ids = refiner.tokenizer.encode("1 3 4 8 9")
    session = refiner.open(Request("sort up: 4 8 1 9 3"), 16)
    whole = session.score(token_ids)
    for kept in (2, 0):
        session.rewind(kept)
        first, rest = session.score(token_ids[kept:4]), session.score(token_ids[4:])
        assert first.logprobs + rest.logprobs == pytest.approx(whole.logprobs[kept:], abs=1e-4)
        assert first.choices[:-1] + rest.choices == whole.choices[kept:]
    session.rewind(0)
    alone = greedy(refiner, "sort up: 4 8 1 9 3")
    assert session.write((), 16)[0] == alone[:16]


def test_a_prompt_over_the_context_is_refused(refiner: GemmaRefiner) -> None:
    most = refiner.model.config.max_position_embeddings - 1
    with pytest.raises(RequestError, match=f"at most {most} tokens") as caught:
        refiner.open(Request("cat " * (most + 1)), 8)
    assert caught.value.field == "prompt"


def test_an_answer_ends_at_the_limit(refiner: GemmaRefiner) -> None:
    session = refiner.open(Request(PROMPT), 5)
    token_ids, reason = session.write((), 5)
    assert (len(token_ids), reason) == (5, "length")


def test_the_deadline_and_the_caller_cut_an_answer(refiner: GemmaRefiner) -> None:
    request = Request(PROMPT)
    late = refiner.open(request, ANSWER_LIMIT, Deadline.after(0.0))
    assert late.write((), 8) == ((), "budget")
    gone = Deadline()
    gone.cancel()
    with pytest.raises(Cancelled):
        refiner.open(request, ANSWER_LIMIT, gone).write((), 8)
