"""The drafter on small random models: many canvases, windows overrun, answers that end anywhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid.conversation.tokenizer import ChatTokenizer
from hybrid.deadline import Deadline
from hybrid.drafters.diffusion_gemma import DiffusionGemmaDrafter
from hybrid.drafters.huggingface import TransformersModel
from hybrid.drafters.noise import CounterNoise, Draw
from hybrid.drafters.template import parse_template
from hybrid.errors import RequestError
from hybrid.gemma.model.gemma import GemmaModel, load_model
from hybrid.protocols import DraftJob
from hybrid.types import Denoised, Draft, DraftParams, Request

VOCABULARY, END_TOKENS = 61, (1, 5)
CONFIDENT = 2.0  # nats: a random model is never sure, so that canvases would never converge


def prompt(seed: int, length: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    return " ".join(f"w{i}" for i in torch.randint(10, VOCABULARY, (length,), generator=generator))


def make_job(text: str, seed: int, tokens: int = 18, **changes: Any) -> DraftJob:
    names = DraftParams.__dataclass_fields__
    given = {name: changes.pop(name) for name in names if name in changes}
    defaults = DraftParams(5, entropy_bound=3.0, confidence_threshold=CONFIDENT)
    request = Request(text, infill=changes.pop("infill", None))
    job = DraftJob(request, replace(defaults, **given), seed, tokens, Deadline())
    return replace(job, **changes)


def many_jobs(count: int) -> list[DraftJob]:
    """Jobs of all lengths, settings and canvases."""
    return [
        make_job(
            prompt(seed, length=1 + 7 * seed % 30),
            seed,
            tokens=1 + 11 * seed % 24,
            max_denoising_steps=1 + seed % 6,
            entropy_bound=(0.01, 1.0, 9.0)[seed % 3],
            stability_threshold=seed % 2,
            self_score=seed % 4 == 0,
        )
        for seed in range(count)
    ]


@dataclass(frozen=True)
class SwitchedDeadline(Deadline):
    """Expires when told to."""

    switch: Event = field(default_factory=Event)

    @property
    def expired(self) -> bool:
        return self.switch.is_set()


Models = tuple[Any, GemmaModel]


@pytest.fixture(scope="module")
def both(make_diffusion: Callable[..., tuple[Any, Path]]) -> Models:
    """transformers' model and the same one on the native stack."""
    model, folder = make_diffusion(seed=4, max_position_embeddings=64)
    return model, load_model(folder)


@pytest.fixture(scope="module")
def drafter(both: Models, word_tokenizer: ChatTokenizer) -> DiffusionGemmaDrafter:
    return DiffusionGemmaDrafter(both[1], word_tokenizer)


def outcome(draft: Draft) -> tuple[Any, ...]:
    """What must not depend on how the numbers were computed."""
    steps = [(canvas.steps, canvas.converged) for canvas in draft.canvases]
    return draft.token_ids, steps, draft.finish_reason


def assert_alike(ours: Sequence[Draft], others: Sequence[Draft]) -> None:
    """The same answers, up to the rounding of floats.

    Rounding may swap entropies that are almost equal; it did in one of 300 such drafts.
    """
    assert len(ours) == len(others)
    pairs = zip(ours, others, strict=True)
    same = [(one, other) for one, other in pairs if outcome(one) == outcome(other)]
    assert len(same) >= len(ours) - 1
    for one, other in same:
        for name in ("entropy", "self_logprobs"):
            first, second = (torch.tensor(getattr(draft, name)) for draft in (one, other))
            torch.testing.assert_close(first, second, atol=1e-3, rtol=1e-3)


def test_the_jobs_of_these_tests_are_of_every_kind(drafter: DiffusionGemmaDrafter) -> None:
    drafts = [drafter.draft([job])[0] for job in many_jobs(40)]
    assert {draft.finish_reason for draft in drafts} == {"stop", "length"}
    assert {len(draft.canvases) for draft in drafts} == {1, 2, 3, 4}
    canvases = [canvas for draft in drafts for canvas in draft.canvases]
    assert {canvas.converged for canvas in canvases} == {True, False}
    assert {canvas.steps for canvas in canvases} == {1, 2, 3, 4, 5, 6}
    ended = [draft.token_ids for draft in drafts if draft.finish_reason == "stop"]
    assert any(len(ids) % 6 for ids in ended)
    for draft in drafts:
        assert not {*draft.token_ids[:-1]} & {*END_TOKENS}
        assert (draft.token_ids[-1] in END_TOKENS) == (draft.finish_reason == "stop")
        assert len(draft.entropy) == len(draft.token_ids)


def test_no_answer_depends_on_its_company(drafter: DiffusionGemmaDrafter) -> None:
    jobs = many_jobs(40)
    alone = [drafter.draft([job])[0] for job in jobs]
    assert_alike(drafter.draft(jobs), alone)
    assert_alike(drafter.draft(jobs[::-1])[::-1], alone)
    for start in range(0, 40, 5):
        assert_alike(drafter.draft(jobs[start : start + 5]), alone[start : start + 5])


def test_transformers_forward_passes_give_the_same_answers(
    both: Models, drafter: DiffusionGemmaDrafter
) -> None:
    transformed = TransformersModel(both[0], both[1].config)
    jobs = many_jobs(40)
    assert_alike(
        DiffusionGemmaDrafter(transformed, drafter.tokenizer).draft(jobs), drafter.draft(jobs)
    )


@pytest.mark.parametrize("length", [1, 13, 40])
def test_self_scores_of_all_canvases_are_a_language_models(
    length: int, both: Models, drafter: DiffusionGemmaDrafter
) -> None:
    text, canvases = prompt(length, length), 0
    for seed in range(4):
        (draft,) = drafter.draft([make_job(text, seed, self_score=True)])
        ids = torch.tensor([[*drafter.tokenizer.encode(text), *draft.token_ids]])
        with torch.no_grad():
            hidden = both[0].model.encoder.language_model(input_ids=ids).last_hidden_state
            logits = 30 * torch.tanh(both[0].lm_head(hidden[0, length - 1 : -1]) / 30)
        expected = logits.log_softmax(-1)[range(len(draft.token_ids)), draft.token_ids]
        torch.testing.assert_close(
            torch.tensor(draft.self_logprobs), expected, atol=1e-3, rtol=1e-3
        )
        canvases = max(canvases, len(draft.canvases))
    assert canvases > 1


def test_an_answer_ends_where_the_context_does(drafter: DiffusionGemmaDrafter) -> None:
    drafts = drafter.draft([make_job(prompt(1, 50), seed, tokens=100) for seed in range(20)])
    lengths = {d.finish_reason: len(d.token_ids) for d in drafts}
    assert lengths["length"] == 12  # two canvases of 6 fit in 64 tokens after 50


def test_the_longest_prompt_leaves_one_canvas(drafter: DiffusionGemmaDrafter) -> None:
    (draft,) = drafter.draft([make_job(prompt(1, 58), 1)])
    assert len(draft.canvases) == 1
    with pytest.raises(RequestError, match=r"59 tokens.*at most 58") as caught:
        drafter.draft([make_job(prompt(1, 59), 1)])
    assert caught.value.field == "prompt"
    with pytest.raises(RequestError, match="prompt"):
        drafter.draft([make_job(prompt(1, 5), 1), make_job(prompt(1, 64), 1)])


@pytest.mark.parametrize(("canvas", "steps"), [(0, 1), (0, 3), (0, 5), (1, 2)])
def test_a_passed_deadline_leaves_the_canvas_as_it_stands(
    canvas: int, steps: int, drafter: DiffusionGemmaDrafter
) -> None:
    deadline, events = SwitchedDeadline(), []

    def expire(event: Denoised) -> None:
        events.append(event)
        if (event.canvas, event.step) == (canvas, steps):
            deadline.switch.set()

    settings: dict[str, Any] = {"max_denoising_steps": 5, "confidence_threshold": 0.0}
    seed = next(
        seed
        for seed in range(20)
        if len(drafter.draft([make_job("w11 w12", seed, **settings)])[0].canvases) == 3
    )
    job = make_job("w11 w12", seed, **settings, deadline=deadline, on_step=expire)
    (draft,) = drafter.draft([job])
    assert draft.finish_reason == "budget"
    assert [c.steps for c in draft.canvases] == [5] * canvas + [steps]
    assert not draft.canvases[-1].converged
    texts = [
        event.text for event in events if event.step == (5 if event.canvas < canvas else steps)
    ]
    assert draft.text.split() == " ".join(texts).split()


def test_a_deadline_that_passed_before_still_gives_an_answer(
    drafter: DiffusionGemmaDrafter,
) -> None:
    deadline = Deadline(expires_at=0.0)
    (draft,) = drafter.draft([make_job("w11 w12", 3, confidence_threshold=0.0, deadline=deadline)])
    assert (draft.steps, draft.finish_reason) == (1, "budget")
    assert draft.token_ids


def test_a_warm_start_takes_the_place_of_the_random_canvas(
    drafter: DiffusionGemmaDrafter,
) -> None:
    """After one step, the seed matters through the first canvas alone."""
    noise = CounterNoise(torch.device("cpu"))
    drawn: Tensor = noise.tokens([Draw(7, canvas=0, step=0)], 6, VOCABULARY)[0]
    one_step = {"max_denoising_steps": 1, "tokens": 6}
    (cold,) = drafter.draft([make_job("w11 w12", 7, **one_step)])
    canvas = tuple(drawn.tolist())
    for seed in range(5):
        job = make_job("w11 w12", seed, **one_step, warm_start=canvas)
        assert drafter.draft([job])[0].entropy == cold.entropy
    others = [drafter.draft([make_job("w11 w12", seed, **one_step)])[0] for seed in range(5)]
    assert all(other.entropy != cold.entropy for other in others)


def test_a_short_warm_start_leaves_the_rest_to_chance(drafter: DiffusionGemmaDrafter) -> None:
    one_step = {"max_denoising_steps": 1, "tokens": 6}

    def entropies(warm_start: tuple[int, ...]) -> list[tuple[float, ...]]:
        jobs = [make_job("w11", seed, **one_step, warm_start=warm_start) for seed in range(5)]
        return [drafter.draft([job])[0].entropy for job in jobs]

    assert len({*entropies((12, 13, 14))}) == 5
    assert all(a != b for a, b in zip(entropies(()), entropies((12, 13)), strict=True))


@pytest.mark.parametrize(
    "infill", ["w20 <blank:1> w21 w22", "<blank:4> w30", "w40 w41 <blank:3>", "<blank:6>"]
)
def test_an_infill_keeps_its_text_though_a_blank_becomes_an_end_token(
    infill: str, drafter: DiffusionGemmaDrafter
) -> None:
    template = parse_template(infill, drafter.tokenizer, 6, min(END_TOKENS))
    given = {place: token for place, token in enumerate(template.tokens) if token is not None}
    texts = {place for place in given if place < template.text_tokens}
    ended: set[int] = set()
    for seed in range(60):
        events: list[Denoised] = []
        text = prompt(seed, 5)
        job = make_job(text, seed, infill=infill, max_denoising_steps=2, on_step=events.append)
        (draft,) = drafter.draft([job])
        assert len(draft.canvases) == 1
        assert all(draft.token_ids[place] == given[place] for place in texts)
        assert all(len(event.pieces) > max(texts, default=-1) for event in events)
        ended |= {place for place, token in enumerate(draft.token_ids) if token in END_TOKENS}
        last = draft.token_ids[-1] in END_TOKENS
        assert draft.finish_reason == ("stop" if last else "length")
    assert ended - given.keys(), "no blank became an end token: the test shows nothing"


def test_an_infill_must_fit_in_the_answer(drafter: DiffusionGemmaDrafter) -> None:
    infill = "w20 <blank:1> w21 w22"
    assert drafter.draft([make_job("w11", 1, tokens=4, infill=infill)])[0].finish_reason == "length"
    with pytest.raises(RequestError, match="have 4 tokens") as caught:
        drafter.draft([make_job("w11", 1, tokens=3, infill=infill)])
    assert caught.value.field == "max_new_tokens"
