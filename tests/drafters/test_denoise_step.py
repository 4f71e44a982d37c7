"""The denoising loop's own arithmetic, on a model that says what the test tells it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid.deadline import Deadline
from hybrid.drafters.denoise_step import EagerDenoiseStep, take_step
from hybrid.drafters.noise import Draw
from hybrid.drafters.sequence import DraftSequence
from hybrid.drafters.template import Template
from hybrid.protocols import DraftJob
from hybrid.types import DraftParams, Request

CANVAS, VOCABULARY = 4, 10
SAMPLED, RANDOM = 8, 9


@dataclass
class ScriptedModel:
    """Gives the scripted logits [R, C, V] call by call; its soft embeddings are probabilities."""

    script: list[Tensor]
    canvases: list[Tensor] = field(default_factory=list)
    soft_embeddings: list[Tensor | None] = field(default_factory=list)

    def denoise(
        self, canvas_ids: Tensor, soft_embedding: Tensor | None, cache: Any, rows: Any
    ) -> Tensor:
        self.canvases.append(canvas_ids.clone())
        self.soft_embeddings.append(soft_embedding)
        return self.script.pop(0).clone()

    def soft_embed(self, probabilities: Tensor) -> Tensor:
        return probabilities.clone()


@dataclass
class ScriptedNoise:
    """Samples and random tokens that cannot be mistaken for each other or for an arg-max."""

    draws: list[Draw] = field(default_factory=list)

    def tokens(self, draws: Sequence[Draw], positions: int, vocabulary: int) -> Tensor:
        raise AssertionError("a denoising step begins no canvas")

    def renoise(self, draws: Sequence[Draw], probabilities: Tensor, accepted: Tensor) -> Tensor:
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(len(draws), CANVAS))
        self.draws += draws
        return torch.where(accepted, SAMPLED, RANDOM)


def make_sequence(
    seed: int = 0,
    template: Template | None = None,
    warm_start: tuple[int, ...] = (),
    **params: Any,
) -> DraftSequence:
    job = DraftJob(
        Request("x"), DraftParams(**params), seed, CANVAS, Deadline(), warm_start=warm_start
    )
    sequence = DraftSequence(job, template=template, row=seed)
    sequence.start_canvas(torch.zeros(CANVAS, dtype=torch.long))
    return sequence


def peaks(best: Sequence[int], height: float | Sequence[float] = 20.0) -> Tensor:
    """Logits [1, C, V] with the given arg-max; the higher, the surer."""
    heights = torch.tensor(height).expand(CANVAS)
    one_hot = torch.nn.functional.one_hot(torch.tensor(best), VOCABULARY)
    return (one_hot * heights[:, None])[None]


def entropy_of(logits: Tensor) -> Tensor:
    p = logits.double().softmax(-1)
    return -(p * p.log()).sum(-1).float()


def run(row: DraftSequence, script: Sequence[Tensor]) -> ScriptedModel:
    model = ScriptedModel([*script])
    for _ in script:
        take_step(EagerDenoiseStep(model, None, ScriptedNoise()), [row])
    return model


def test_temperature_falls_from_the_highest_to_just_above_the_lowest() -> None:
    row, temperatures = make_sequence(max_denoising_steps=4, t_min=0.4, t_max=0.8), []
    for _ in range(4):
        temperatures.append(row.temperature)
        run(row, [peaks([1, 2, 3, 4])])
    assert temperatures == pytest.approx([0.8, 0.7, 0.6, 0.5])


def test_a_single_step_has_the_highest_temperature() -> None:
    assert make_sequence(max_denoising_steps=1).temperature == pytest.approx(0.8)


def test_entropy_and_self_conditioning_are_those_of_the_cooled_distribution() -> None:
    logits = torch.randn(1, CANVAS, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3
    row = make_sequence(max_denoising_steps=4, t_min=0.5, t_max=1.5)
    model = run(row, [logits] * 3)
    assert model.soft_embeddings[0] is None
    assert row.soft_embedding is not None
    for soft, temperature in zip(
        (*model.soft_embeddings[1:], row.soft_embedding[None]), (1.5, 1.25, 1.0), strict=True
    ):
        torch.testing.assert_close(soft, (logits / temperature).softmax(-1))
    torch.testing.assert_close(row.entropy[None], entropy_of(logits))
    assert row.mean_entropy == pytest.approx(entropy_of(logits).mean().item())
    assert torch.equal(row.best_ids[None], logits.argmax(-1))


def test_kept_positions_are_sampled_and_all_others_are_random_again() -> None:
    logits = peaks([1, 2, 3, 4], [20.0, 0.0, 20.0, 1.0])
    row = make_sequence(entropy_bound=0.1)
    model = run(row, [logits, logits])
    # Two are sure, the third surest crosses the bound, the last one is beyond it.
    assert row.accepted.tolist() == [True, False, True, True]
    assert model.canvases[1].tolist() == [[SAMPLED, RANDOM, SAMPLED, SAMPLED]]
    assert row.canvas_ids.tolist() == [SAMPLED, RANDOM, SAMPLED, SAMPLED]
    assert row.best_ids.tolist() == [1, 0, 3, 4]


def test_rows_at_different_places_share_a_pass() -> None:
    early = make_sequence(seed=5, max_denoising_steps=2, t_min=0.5, t_max=1.0, entropy_bound=100.0)
    late = make_sequence(seed=6, max_denoising_steps=5, t_min=1.0, t_max=3.5, entropy_bound=0.0)
    flat = peaks([1, 2, 3, 4], 2.0)
    run(late, [flat] * 3)
    late.advance_canvas()
    late.start_canvas(torch.zeros(CANVAS, dtype=torch.long))
    run(late, [flat] * 3)
    noise = ScriptedNoise()
    take_step(
        EagerDenoiseStep(ScriptedModel([torch.cat((flat, flat))]), None, noise), [early, late]
    )
    assert noise.draws == [Draw(5, canvas=0, step=1), Draw(6, canvas=1, step=4)]
    assert (early.step, late.step) == (1, 4)
    assert early.accepted.all()
    assert late.accepted.sum() == 1
    torch.testing.assert_close(early.entropy, entropy_of(flat)[0])
    torch.testing.assert_close(late.entropy, entropy_of(flat / 2.0)[0])
    assert (early.is_canvas_done, late.is_canvas_done) == (False, False)


def test_nothing_is_drawn_for_a_canvas_that_ends() -> None:
    rows = [
        make_sequence(seed=1),
        make_sequence(seed=2, max_denoising_steps=1),
        make_sequence(seed=3),
    ]
    noise = ScriptedNoise()
    model = ScriptedModel([peaks([1, 2, 3, 4]).expand(3, -1, -1)])
    take_step(EagerDenoiseStep(model, None, noise), rows)
    assert noise.draws == [Draw(1, canvas=0, step=1), Draw(3, canvas=0, step=1)]
    assert [row.soft_embedding is None for row in rows] == [False, True, False]
    assert [row.canvas_ids.tolist() for row in rows] == [[SAMPLED] * 4, [0] * 4, [SAMPLED] * 4]
    assert all(row.accepted.all() for row in rows)


def test_a_row_that_begins_joins_rows_on_their_way() -> None:
    logits = torch.randn(2, CANVAS, VOCABULARY, generator=torch.Generator().manual_seed(0))
    early, late = make_sequence(), make_sequence(t_min=1.0, t_max=1.0)
    run(late, [logits[1:]])
    model = ScriptedModel([logits])
    take_step(EagerDenoiseStep(model, None, ScriptedNoise()), [early, late])
    (soft,) = model.soft_embeddings
    assert soft is not None and not soft[0].any()
    torch.testing.assert_close(soft[1], logits[1].softmax(-1))


@pytest.mark.parametrize("threshold", [0, 1, 3])
def test_a_canvas_is_stable_after_that_many_repetitions(threshold: int) -> None:
    row = make_sequence(stability_threshold=threshold)
    run(row, [peaks([5, 5, 5, 5])])
    for steps in range(1, threshold + 1):
        assert not row.converged
        run(row, [peaks([1, 2, 3, 4])])
        assert row.step == steps + 1
    if threshold:
        assert not row.converged
        run(row, [peaks([1, 2, 3, 4])])
    assert row.converged and row.is_canvas_done


def test_a_change_starts_the_count_again() -> None:
    row = make_sequence(stability_threshold=2)
    one, other = peaks([1, 2, 3, 4]), peaks([1, 2, 3, 5])
    run(row, [one, one, other, one, one])
    assert not row.converged
    run(row, [one])
    assert row.converged


def test_confidence_must_be_below_its_threshold_and_not_at_it() -> None:
    flat = peaks([1, 2, 3, 4], 1.0)
    first = make_sequence(stability_threshold=0, t_min=1.0, t_max=1.0)
    run(first, [flat])
    for threshold, converged in (
        (first.mean_entropy, False),
        (math.nextafter(first.mean_entropy, math.inf), True),
    ):
        row = make_sequence(
            stability_threshold=0, t_min=1.0, t_max=1.0, confidence_threshold=threshold
        )
        run(row, [flat])
        assert row.converged == converged


def test_a_stable_canvas_that_is_unsure_goes_on_until_it_is_sure() -> None:
    row = make_sequence(max_denoising_steps=9)
    run(row, [peaks([1, 2, 3, 4], 1.0)] * 3)
    assert not row.converged
    run(row, [peaks([1, 2, 3, 4])])
    assert row.converged


def test_the_next_canvas_remembers_nothing() -> None:
    row = make_sequence(max_denoising_steps=5)
    same = peaks([1, 2, 3, 4])
    run(row, [same, same])
    assert row.converged
    row.advance_canvas()
    row.start_canvas(torch.full((CANVAS,), 6))
    assert (row.canvas, row.step, row.is_canvas_done) == (1, 0, False)
    model = run(row, [same])
    assert not row.converged
    assert model.canvases[0].tolist() == [[6] * CANVAS]
    assert model.soft_embeddings == [None]
    run(row, [same])
    assert row.converged


def test_a_warm_start_replaces_the_beginning_of_the_first_canvas() -> None:
    row = make_sequence(warm_start=(3, 2))
    assert run(row, [peaks([1, 2, 3, 4])]).canvases[0].tolist() == [[3, 2, 0, 0]]
    assert row.canvas_ids.tolist() == [SAMPLED] * CANVAS


def test_a_templates_text_is_certain_in_every_step_and_costs_no_entropy() -> None:
    template = Template((None, 6, None, 7), text_tokens=4)
    settings: dict[str, Any] = {"entropy_bound": 0.0, "t_min": 1.0, "t_max": 1.0}
    assert make_sequence(template=template, **settings).canvas_ids.tolist() == [0, 6, 0, 7]
    row = make_sequence(template=template, warm_start=(3, 3, 3, 3), **settings)
    logits = peaks([1, 2, 3, 4], [1.0, 0.0, 2.0, 0.0])
    model = run(row, [logits, logits])
    assert model.canvases[0].tolist() == [[3, 6, 3, 7]]
    assert model.canvases[1].tolist() == [[RANDOM, 6, SAMPLED, 7]]
    assert row.best_ids.tolist() == [1, 6, 3, 7]
    assert row.accepted.tolist() == [False, True, True, True]
    assert row.entropy[[1, 3]].tolist() == [0.0, 0.0]
    expected = entropy_of(logits)[0, [0, 2]]
    assert row.mean_entropy == pytest.approx(expected.mean().item())
    one_hot = torch.eye(VOCABULARY)[[6, 7]]
    soft = model.soft_embeddings[1]
    assert soft is not None
    assert torch.equal(soft[0, [1, 3]], one_hot)
    torch.testing.assert_close(soft[0, [0, 2]], logits.softmax(-1)[0, [0, 2]])


def test_a_template_concerns_its_own_row_only() -> None:
    logits = peaks([1, 2, 3, 4], 2.0)
    free, other = make_sequence(seed=1), make_sequence(seed=1)
    filled = make_sequence(seed=2, template=Template((None, 6, 6, 6), text_tokens=4))
    model = ScriptedModel([torch.cat((logits, logits))])
    take_step(EagerDenoiseStep(model, None, ScriptedNoise()), [filled, free])
    run(other, [logits])
    assert torch.equal(free.canvas_ids, other.canvas_ids)
    assert free.soft_embedding is not None and other.soft_embedding is not None
    assert torch.equal(free.soft_embedding, other.soft_embedding)
    assert free.mean_entropy == other.mean_entropy
