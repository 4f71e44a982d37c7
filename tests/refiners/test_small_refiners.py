"""Lossless on random models of small windows, many end tokens and little context."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.conversation.tokenizer import ChatTokenizer
from hybrid.deadline import Deadline
from hybrid.gemma.model.gemma import load_model
from hybrid.protocols import SamplingParams
from hybrid.refiners.context import RefineContext
from hybrid.refiners.gemma import GemmaRefiner
from hybrid.refiners.refine import refine, write_alone
from hybrid.types import Draft, Refinement, RefineMode, RefineParams, Request
from tests.refiners.numbers import NumberTokenizer

CONTEXT, VOCABULARY = 48, 61
GEOMETRIES: dict[str, dict[str, Any]] = {
    "dense": {},
    "experts": {"enable_moe_block": True},
    "window of 4": {"sliding_window": 4},
    "all full": {"layer_types": ["full_attention"] * 3},
}
Pair = tuple[GemmaRefiner, Any]


@pytest.fixture(scope="module", params=GEOMETRIES, ids=lambda name: name.replace(" ", "-"))
def pair(request: pytest.FixtureRequest, make_causal: Callable[..., tuple[Any, Path]]) -> Pair:
    """A refiner and the transformers model that it was loaded from; every eighth token is an end.

    Attention is made sharp and loud: random models without that repeat their last token.
    """
    reference, folder = make_causal(
        max_position_embeddings=CONTEXT,
        eos_token_id=[*range(1, VOCABULARY, 8)],
        **GEOMETRIES[request.param],
    )
    for name, tensor in reference.state_dict().items():
        if name.endswith("q_norm.weight"):
            tensor.mul_(10)
        elif name.endswith("post_attention_layernorm.weight"):
            tensor.mul_(4)
    reference.save_pretrained(folder)
    return GemmaRefiner(load_model(folder), cast(ChatTokenizer, NumberTokenizer())), reference


def refined(
    refiner: GemmaRefiner,
    prompt: list[int],
    token_ids: Sequence[int] | None,
    mode: RefineMode,
    limit: int,
) -> Refinement:
    request = Request(" ".join(map(str, prompt)))
    if token_ids is None:
        return write_alone(refiner, request, limit, Deadline())
    draft = Draft(tuple(token_ids), refiner.decode(token_ids), (), (), "stop")
    params = RefineParams(mode, min_token_logprob=0.0)
    return refine(RefineContext(request, draft, params, limit, Deadline(), refiner))[1]


tokens = st.integers(0, VOCABULARY - 1)
prompts = st.lists(tokens, min_size=1, max_size=CONTEXT - 1)


@settings(derandomize=True, deadline=None)  # at random, two logits might be equal but for rounding
@given(prompts, st.integers(1, 24), st.integers(0, 24), st.lists(tokens, max_size=24))
def test_verify_equals_greedy_decoding_for_any_draft(
    pair: Pair, prompt: list[int], limit: int, kept: int, rest: list[int]
) -> None:
    refiner, _ = pair
    alone = refined(refiner, prompt, None, "generate", limit)
    refinement = refined(refiner, prompt, [*alone.token_ids[:kept], *rest], "verify", limit)
    assert refinement.token_ids == alone.token_ids
    assert refinement.finish_reason == alone.finish_reason
    assert refinement.accepted_tokens >= min(kept, len(alone.token_ids))


@pytest.mark.parametrize("length", [1, 4, 13, 30, CONTEXT - 5, CONTEXT - 1])
def test_greedy_decoding_equals_transformers(pair: Pair, length: int) -> None:
    refiner, reference = pair
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        prompt = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        room = min(16, CONTEXT - length)
        ends = sorted(refiner.end_token_ids)
        with torch.inference_mode():
            output = reference.generate(
                torch.tensor([prompt]), max_new_tokens=room, do_sample=False, eos_token_id=ends
            )
        alone = refined(refiner, prompt, None, "generate", 16)
        assert alone.token_ids == tuple(output[0, length:].tolist())


@pytest.mark.parametrize("mode", ["score", "verify", "cascade"])
def test_a_draft_longer_than_the_context_is_read_as_far_as_it_fits(
    pair: Pair, mode: RefineMode
) -> None:
    refiner, _ = pair
    prompt, draft = [8] * (CONTEXT - 3), [8] * 9
    refinement = refined(refiner, prompt, draft, mode, 16)
    if mode == "score":
        assert refinement.token_ids == tuple(draft)
    else:
        assert refinement.token_ids == refined(refiner, prompt, None, "generate", 16).token_ids


@settings(derandomize=True, deadline=None)
@given(
    prompts,
    st.integers(1, 24),
    st.integers(0, 24),
    st.lists(tokens, max_size=24),
    st.lists(tokens, max_size=6),
)
def test_a_source_saves_passes_and_changes_nothing(
    pair: Pair, prompt: list[int], limit: int, kept: int, rest: list[int], before: list[int]
) -> None:
    """Whatever is proposed: the answer, its end and what can be written after it are the same."""
    refiner, _ = pair
    request = Request(" ".join(map(str, prompt)))
    alone, copying = refiner.open(request, limit), refiner.open(request, limit)
    written = alone.write((), limit)
    source = [*before, *written[0][:kept], *rest, *written[0][kept:]]
    assert copying.write((), limit, source=source) == written
    assert copying.forward_passes <= alone.forward_passes
    assert copying.answer_tokens == alone.answer_tokens
    if kept and not before:
        saved = min(kept, len(written[0]) - 1)
        assert copying.forward_passes <= len(written[0]) - saved


@settings(derandomize=True, deadline=None)
@given(prompts, st.integers(1, 16), st.integers(0, 99), st.lists(tokens, max_size=16))
def test_sampled_verify_is_sampling_alone_with_the_same_seed(
    pair: Pair, prompt: list[int], limit: int, seed: int, rest: list[int]
) -> None:
    refiner, _ = pair
    request, sampling = Request(" ".join(map(str, prompt))), SamplingParams(0.9, seed)
    alone = write_alone(refiner, request, limit, Deadline(), sampling)
    for draft_ids in (rest, [*alone.token_ids[:5], *rest]):
        draft = Draft(tuple(draft_ids), refiner.decode(draft_ids), (), (), "stop")
        params = RefineParams("verify", temperature=0.9)
        context = RefineContext(request, draft, params, limit, Deadline(), refiner, sampling)
        assert refine(context)[1].token_ids == alone.token_ids


def test_samples_have_the_distribution_of_the_model(pair: Pair) -> None:
    """Chi-square over 2,000 seeds, verified against a fixed draft of one token."""
    refiner, _ = pair
    request, temperature, count = Request("5 6 7 8"), 2.0, 2000
    logits = refiner.model.logits(_last_state(refiner, request))[0] / temperature
    expected = logits.double().softmax(-1) * count
    seen = torch.zeros(VOCABULARY, dtype=torch.double)
    session = refiner.open(request, 4)
    session.score(())
    draft = int(expected.argmax())
    for seed in range(count):
        session._sampling = SamplingParams(temperature, seed)
        session.rewind(0)
        first = session.score((draft,)).choices[0]
        seen[first] += 1
    common = expected >= 5
    statistic = ((seen - expected)[common] ** 2 / expected[common]).sum()
    freedom = int(common.sum())
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def _last_state(refiner: GemmaRefiner, request: Request) -> torch.Tensor:
    session = refiner.open(request, 1)
    session.score(())
    return session._states[-1:]
