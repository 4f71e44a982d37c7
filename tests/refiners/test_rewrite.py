"""`rewrite`: the refiner's own answer to prompt and draft, at fewer passes."""

import pytest

from hybrid.deadline import Deadline
from hybrid.embedded import weights_path
from hybrid.embedded.tasks import TASKS, evaluation_set
from hybrid.errors import RequestError
from hybrid.refiners.context import RefineContext
from hybrid.refiners.gemma import GemmaRefiner
from hybrid.refiners.refine import refine, write_alone
from hybrid.refiners.rewrite import with_draft
from hybrid.refiners.scripted import END, ScriptedRefiner
from hybrid.types import Draft, Message, RefineParams, Request

LIMIT = 32


@pytest.fixture(scope="module")
def refiner() -> GemmaRefiner:
    return GemmaRefiner.from_directory(weights_path("refiner"))


@pytest.mark.parametrize("task", TASKS)
def test_it_equals_greedy_decoding_of_the_same_prompt(task: str, refiner: GemmaRefiner) -> None:
    for instance in evaluation_set(task, 5):
        request = Request(instance.prompt)
        first = write_alone(refiner, request, LIMIT, Deadline())
        prompted = write_alone(refiner, with_draft(request, first.text), LIMIT, Deadline())
        for token_ids in (first.token_ids, prompted.token_ids, first.token_ids[:3], ()):
            text = refiner.decode(token_ids)
            draft = Draft(token_ids, text, (0.0,) * len(token_ids), (), "stop")
            context = RefineContext(
                request, draft, RefineParams("rewrite"), LIMIT, Deadline(), refiner
            )
            verdict, refinement = refine(context)
            alone = write_alone(refiner, with_draft(request, text), LIMIT, Deadline())
            assert refinement.token_ids == alone.token_ids
            assert refinement.finish_reason == alone.finish_reason
            assert refinement.forward_passes <= alone.forward_passes
            assert (verdict, refinement.guarantee) == (None, "none")


def test_a_copied_run_costs_one_pass(refiner: GemmaRefiner) -> None:
    """The source is proposed whole, and again behind every token that differs."""
    request = Request(evaluation_set("summarize", 1)[0].prompt)
    alone = write_alone(refiner, request, LIMIT, Deadline())
    assert len(alone.token_ids) > 12
    session = refiner.open(request, LIMIT)
    assert session.write((), LIMIT, source=alone.token_ids)[0] == alone.token_ids
    assert session.forward_passes == 1
    damaged = [*alone.token_ids]
    damaged[5] = damaged[5] + 1
    session = refiner.open(request, LIMIT)
    assert session.write((), LIMIT, source=damaged)[0] == alone.token_ids
    assert session.forward_passes <= 5


def test_the_draft_stands_in_the_last_message() -> None:
    before = Message("user", "hello"), Message("assistant", "hi"), Message("user", "say it")
    request = with_draft(Request(messages=before, seed=4), "a draft")
    assert request.conversation[:2] == before[:2]
    last = request.conversation[-1]
    assert last.role == "user"
    assert last.content.startswith("say it\n") and "\na draft\n" in last.content
    assert request.seed == 4


def test_a_draft_that_does_not_fit_beside_the_prompt_is_an_error(refiner: GemmaRefiner) -> None:
    words = "cat " * (refiner.model.config.max_position_embeddings // 2)
    draft = Draft(tuple(refiner.tokenizer.encode(words)), words, (), (), "stop")
    params = RefineParams("rewrite")
    with pytest.raises(RequestError, match="must leave room in the context"):
        refine(RefineContext(Request(words), draft, params, LIMIT, Deadline(), refiner))


def test_tokens_of_the_draft_that_survive_are_counted() -> None:
    asked = with_draft(Request("say it"), "the slow fox").conversation[-1].content
    refiner = ScriptedRefiner({asked: "the quick fox"})
    draft = Draft((*b"the slow fox", END), "the slow fox", (), (), "stop")
    context = RefineContext(
        Request("say it"), draft, RefineParams("rewrite"), LIMIT, Deadline(), refiner
    )
    refinement = refine(context)[1]
    assert refinement.text == "the quick fox"
    assert refinement.accepted_tokens == len("the ") + len(" fox") + 1
    (edit,) = refinement.edits
    assert (edit.old, edit.new) == ("slow", "quick")
    assert "had read the draft" in edit.why
