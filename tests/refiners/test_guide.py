"""`guide`: votes on the canvas, from any refiner, and what becomes of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from hybrid.conversation.tokenizer import ChatTokenizer
from hybrid.deadline import CancelFlag, Deadline
from hybrid.drafters.diffusion_gemma import DiffusionGemmaDrafter
from hybrid.embedded import weights_path
from hybrid.embedded.tasks import check, evaluation_set
from hybrid.errors import BackendError, Cancelled
from hybrid.gemma.model.gemma import load_model
from hybrid.protocols import DraftJob, Votes
from hybrid.refiners.gemma import GemmaRefiner
from hybrid.refiners.guide import RefinerGuide
from hybrid.refiners.scripted import END, ScriptedRefiner
from hybrid.types import DraftParams, RefineParams, Request
from tests.refiners.numbers import NumberTokenizer

REFINER = ScriptedRefiner({"say it": "fox"})
FOX = (*b"fox", END)


def scripted_guide(
    refiner: ScriptedRefiner = REFINER, deadline: Deadline | None = None
) -> RefinerGuide:
    params = RefineParams("guide", min_token_logprob=-4.0)
    return RefinerGuide(refiner, Request("say it"), params, 16, deadline or Deadline())


def test_what_the_refiner_would_write_is_approved_and_what_it_doubts_is_vetoed() -> None:
    guide = scripted_guide()
    assert guide.review((), FOX) == Votes(frozenset(range(4)), frozenset())
    assert guide.review((), (*b"fax", END)) == Votes(
        frozenset({0}), frozenset({1, 2}), frozenset({(1, ord("a"))})
    )
    assert guide.review(tuple(b"fo"), (ord("x"), END)) == Votes(frozenset({0, 1}), frozenset())
    assert guide.review((), ()) == Votes()


def test_it_reads_the_prompt_and_earlier_canvases_once() -> None:
    guide = scripted_guide()
    guide.review((), b"fo")
    guide.review(tuple(b"fo"), b"y")
    assert guide.session is not None
    assert guide.session.answer_tokens == 3


@pytest.mark.parametrize("stage", ["open", "score"])
def test_a_guide_that_fails_votes_no_more_and_says_why(stage: Any) -> None:
    guide = scripted_guide(ScriptedRefiner({"say it": "fox"}, fails_at=stage))
    assert guide.review((), FOX) == Votes()
    assert isinstance(guide.problem, BackendError)
    assert guide.review((), FOX) == Votes()


def test_a_late_guide_does_not_vote() -> None:
    guide = scripted_guide(deadline=Deadline.after(0.0))
    assert guide.review((), FOX) == Votes()
    assert guide.session is None


@dataclass
class Recorder:
    """Votes as it is told to, and remembers what it was shown."""

    votes: Callable[[Sequence[int]], Votes]
    every: int = 2
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    def review(self, before: Sequence[int], token_ids: Sequence[int]) -> Votes:
        self.seen.append((tuple(before), tuple(token_ids)))
        return self.votes(token_ids)


@pytest.fixture
def drafter(make_diffusion: Callable[..., tuple[Any, Path]]) -> DiffusionGemmaDrafter:
    _, folder = make_diffusion(canvas_length=6)
    return DiffusionGemmaDrafter(load_model(folder), cast(ChatTokenizer, NumberTokenizer()))


def job(guide: Any, steps: int = 8, tokens: int = 6, seed: int = 3) -> DraftJob:
    params = DraftParams(max_denoising_steps=steps)
    return DraftJob(Request("9 8 7"), params, seed, tokens, Deadline(), guide=guide)


def test_what_is_approved_is_held_fast(drafter: DiffusionGemmaDrafter) -> None:
    guide = Recorder(lambda token_ids: Votes(approved=frozenset({0, 2})), every=1)
    drafter.draft([job(guide)])
    first = guide.seen[0][1]
    assert len(guide.seen) > 2
    assert all((ids[0], ids[2]) == (first[0], first[2]) for _, ids in guide.seen if len(ids) > 2)


def test_a_canvas_does_not_end_on_a_vetoed_token(drafter: DiffusionGemmaDrafter) -> None:
    loose = DraftParams(max_denoising_steps=8, stability_threshold=0, confidence_threshold=99.0)
    (free,) = drafter.draft([DraftJob(Request("9 8 7"), loose, 3, 6, Deadline())])
    assert free.canvases[0].steps < 8 and free.canvases[0].converged
    guide = Recorder(lambda token_ids: Votes(vetoed=frozenset({1})), every=100)
    guided = DraftJob(Request("9 8 7"), loose, 3, 6, Deadline(), guide=guide)
    (draft,) = drafter.draft([guided])
    assert draft.canvases[0].steps == 8
    assert not draft.canvases[0].converged
    assert len(guide.seen) == 8


def test_a_guide_without_objections_changes_nothing(drafter: DiffusionGemmaDrafter) -> None:
    guide = Recorder(lambda token_ids: Votes())
    (free,), (guided,) = drafter.draft([job(None)]), drafter.draft([job(guide)])
    assert guided.token_ids == free.token_ids
    assert len(guide.seen) == guided.steps // 2 or guided.canvases[0].converged


def test_later_canvases_are_seen_with_what_came_before(drafter: DiffusionGemmaDrafter) -> None:
    guide = Recorder(lambda token_ids: Votes(frozenset(range(len(token_ids)))), every=1)
    for seed in range(8):
        guide.seen.clear()
        (draft,) = drafter.draft([job(guide, tokens=12, seed=seed)])
        if len(draft.canvases) == 2:
            break
    assert len(draft.canvases) == 2
    befores = {before for before, _ in guide.seen}
    assert befores == {(), draft.token_ids[:6]}


def test_other_rows_of_the_batch_are_not_touched(drafter: DiffusionGemmaDrafter) -> None:
    def cancelled(token_ids: Sequence[int]) -> Votes:
        return Votes(approved=frozenset({0}), vetoed=frozenset({0, 1}))

    (alone,) = drafter.draft([job(None, seed=5)])
    _, beside = drafter.draft([job(Recorder(cancelled, every=1)), job(None, seed=5)])
    assert beside.token_ids == alone.token_ids


def test_cancelling_ends_a_guided_draft(drafter: DiffusionGemmaDrafter) -> None:
    gone = CancelFlag()

    def vote(token_ids: Sequence[int]) -> Votes:
        gone.set()
        return Votes()

    params = DraftParams(max_denoising_steps=8)
    guided = DraftJob(
        Request("9 8 7"), params, 3, 6, Deadline(cancelled=gone), guide=Recorder(vote, every=1)
    )
    with pytest.raises(Cancelled):
        drafter.draft([guided])


def test_the_embedded_refiner_helps_the_embedded_drafter() -> None:
    """Questions are what the drafter cannot answer and the refiner can."""
    drafter = DiffusionGemmaDrafter.from_directory(weights_path("drafter"))
    refiner = GemmaRefiner.from_directory(weights_path("refiner"))
    params = RefineParams("guide", min_token_logprob=-4.0, guide_every=2)
    right = {"free": 0, "guided": 0}
    for seed, instance in enumerate(evaluation_set("question", 20)):
        request, sampler = Request(instance.prompt), DraftParams(max_denoising_steps=16)
        one = DraftJob(request, sampler, seed, 32, Deadline())
        guide = RefinerGuide(refiner, request, params, 32, Deadline())
        guided = DraftJob(request, sampler, seed, 32, Deadline(), guide=guide)
        with torch.inference_mode():
            for name, asked in (("free", one), ("guided", guided)):
                (draft,) = drafter.draft([asked])
                right[name] += check(instance, draft.text)
        assert guide.problem is None
    assert right["guided"] >= right["free"] + 8, right
