"""`best_of`: which of several drafts is the answer."""

from collections.abc import Sequence

import pytest

from hybrid.deadline import Deadline
from hybrid.errors import Cancelled
from hybrid.refiners.context import RefineContext
from hybrid.refiners.refine import refine
from hybrid.refiners.scripted import ScriptedRefiner
from hybrid.types import Draft, Refinement, RefineParams, Request, Verdict

SELF = RefineParams("best_of", "self", min_token_logprob=-4.0)


def draft(text: str, *logprobs: float) -> Draft:
    ids = tuple(text.encode())
    return Draft(ids, text, (0.0,) * len(ids), (), "stop", self_logprobs=logprobs)


def choose(
    drafts: Sequence[Draft],
    params: RefineParams = SELF,
    wrong: str = "",
    deadline: Deadline | None = None,
) -> tuple[Verdict, Refinement]:
    def failed(text: str) -> tuple[str, ...]:
        return ("polite",) if wrong and wrong in text else ()

    first, *more = drafts
    refiner, deadline = ScriptedRefiner({"say it": "good"}), deadline or Deadline()
    context = RefineContext(
        Request("say it"),
        first,
        params,
        16,
        deadline,
        refiner,
        failed_checks=failed,
        more_drafts=more,
    )
    verdict, refinement = refine(context)
    assert verdict is not None
    return verdict, refinement


def test_the_surest_weakest_token_decides() -> None:
    drafts = [draft("a b", -0.1, -9.0), draft("a c", -2.0, -3.0), draft("a d", -0.1, -3.5)]
    verdict, refinement = choose(drafts)
    assert refinement.text == "a c"
    assert (verdict.accepted, verdict.min_logprob, verdict.scorer) == (True, -3.0, "self")
    assert [(edit.old, edit.new) for edit in refinement.edits] == [("b", "c")]
    assert (refinement.guarantee, refinement.forward_passes) == ("draft", 0)


def test_a_failed_check_weighs_more_than_any_score() -> None:
    verdict, refinement = choose([draft("rude", -0.1), draft("kind", -8.0)], wrong="rude")
    assert refinement.text == "kind"
    assert not verdict.accepted
    assert choose([draft("rude", -0.1), draft("rude!", -8.0)], wrong="rude")[1].text == "rude"


def test_of_equals_the_first_stays() -> None:
    _, refinement = choose([draft("a", -1.0), draft("b", -1.0)])
    assert refinement.text == "a"
    assert refinement.edits == ()


def test_an_empty_draft_is_chosen_last() -> None:
    assert choose([draft(""), draft("b", -20.0)])[1].text == "b"
    assert choose([draft("")])[1].text == ""


def test_the_refiner_may_choose() -> None:
    params = RefineParams("best_of", "refiner", min_token_logprob=-4.0)
    verdict, refinement = choose([draft("bad!"), draft("good")], params)
    assert refinement.text == "good"
    assert verdict.scorer == "refiner"
    assert refinement.forward_passes == 2


def test_a_late_refiner_passes_over_the_rest() -> None:
    params = RefineParams("best_of", "refiner")
    _, refinement = choose([draft("bad!"), draft("good")], params, deadline=Deadline.after(1e-9))
    assert (refinement.text, refinement.forward_passes) == ("bad!", 1)


def test_cancelling_stops_it() -> None:
    deadline = Deadline()
    deadline.cancel()
    params = RefineParams("best_of", "refiner")
    with pytest.raises(Cancelled):
        choose([draft("good")], params, deadline=deadline)
