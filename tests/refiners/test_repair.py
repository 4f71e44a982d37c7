"""`repair`: which tokens are denoised again, and when the new answer takes the old one's place."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from hybrid.deadline import Deadline
from hybrid.errors import CapabilityError
from hybrid.refiners.context import FixedTokens, RefineContext
from hybrid.refiners.refine import refine
from hybrid.refiners.scripted import END, ScriptedRefiner
from hybrid.types import (
    Canvas,
    Draft,
    FinishReason,
    Refinement,
    RefineParams,
    Request,
    Scorer,
    Verdict,
)

SELF = RefineParams("repair", "self", min_token_logprob=-3.0)
CANVAS = Canvas(4, True, 0.0)


def draft(text: str, logprobs: Sequence[float], reason: FinishReason = "stop") -> Draft:
    ids = tuple(text.encode())
    return Draft(ids, text, (0.0,) * len(ids), (CANVAS,), reason, self_logprobs=tuple(logprobs))


def mend(
    old: Draft, new: Draft, params: RefineParams = SELF, wrong: str = ""
) -> tuple[Verdict, Refinement, list[FixedTokens]]:
    """`repair` with a drafter that answers `new`, and what it was asked to keep."""
    asked: list[FixedTokens] = []

    def redraft(fixed: FixedTokens) -> Draft:
        asked.append(fixed)
        return new

    def failed(text: str) -> tuple[str, ...]:
        return tuple(f"no {letter}" for letter in wrong if letter in text)

    context = RefineContext(
        Request("say it"),
        old,
        params,
        16,
        Deadline(),
        ScriptedRefiner({"say it": "abcd"}),
        failed_checks=failed,
        redraft=redraft,
    )
    verdict, refinement = refine(context)
    assert verdict is not None
    return verdict, refinement, asked


def test_weak_tokens_are_denoised_again_and_the_rest_is_held() -> None:
    old, new = draft("abxd", (-1, -1, -5, -1)), draft("abcd", (-1, -1, -2, -1))
    verdict, refinement, asked = mend(old, new)
    assert asked == [(ord("a"), ord("b"), None, ord("d"))]
    assert (refinement.text, refinement.guarantee) == ("abcd", "guarded")
    assert (refinement.accepted_tokens, refinement.denoising_steps) == (3, 4)
    assert [(edit.old, edit.new) for edit in refinement.edits] == [("abxd", "abcd")]
    assert verdict.accepted


def test_a_draft_without_weak_tokens_is_left_alone() -> None:
    old = draft("abcd", (-1, -1, -2.9, -1))
    verdict, refinement, asked = mend(old, draft("no", (-0.1, -0.1)))
    assert asked == []
    assert (refinement.text, refinement.edits, refinement.denoising_steps) == ("abcd", (), 0)
    assert verdict.accepted


@pytest.mark.parametrize("logprobs", [(-1, -1, -5, -1), (-1, -1, -6, -0.1), ()])
def test_an_answer_that_is_not_surer_is_not_kept(logprobs: Sequence[float]) -> None:
    _, refinement, asked = mend(draft("abxd", (-1, -1, -5, -1)), draft("abyd", logprobs))
    assert len(asked) == 1
    assert refinement.text == "abxd"


def test_an_answer_cut_by_the_deadline_is_not_kept() -> None:
    new = draft("abcd", (-1, -1, -1, -1), "budget")
    assert mend(draft("abxd", (-1, -1, -5, -1)), new)[1].text == "abxd"


def test_a_failed_check_redoes_the_least_likely_third() -> None:
    old, new = draft("abxd", (-1, -2, -1.5, -1)), draft("aXcd", (-1, -2.5, -1.5, -1))
    _, refinement, asked = mend(old, new, wrong="x")
    assert asked == [(ord("a"), None, None, ord("d"))]
    assert refinement.text == "aXcd"  # less sure, but it passes


def test_a_check_that_passed_is_never_broken() -> None:
    old, new = draft("abxd", (-1, -1, -5, -1)), draft("abcd", (-1, -1, -1, -1))
    assert mend(old, new, wrong="c")[1].text == "abxd"
    assert mend(old, new, wrong="cx")[1].text == "abxd"


def test_the_refiner_may_score() -> None:
    params = RefineParams("repair", "refiner", min_token_logprob=-3.0)
    verdict, refinement, asked = mend(draft("abxd", ()), draft("abcd", ()), params)
    assert asked == [(ord("a"), ord("b"), None, ord("d"))] or asked[0][2] is None
    assert refinement.text == "abcd"
    assert verdict.scorer == "refiner"
    assert refinement.forward_passes == 2


def test_only_one_canvas_can_be_repaired() -> None:
    old = Draft((1, 2), "ab", (0.0, 0.0), (CANVAS, CANVAS), "stop", self_logprobs=(-9.0, -9.0))
    with pytest.raises(CapabilityError, match="several canvases"):
        mend(old, old)


REFINER = RefineParams("repair", min_token_logprob=-3.0, repair_with="refiner")


def regenerate(
    old: Draft, answer: str, params: RefineParams = REFINER, limit: int = 16
) -> tuple[Verdict, Refinement]:
    refiner = ScriptedRefiner({"say it": answer})
    request = Request("say it")
    verdict, refinement = refine(RefineContext(request, old, params, limit, Deadline(), refiner))
    assert verdict is not None
    return verdict, refinement


def test_the_refiner_writes_until_it_meets_the_draft() -> None:
    """Scripted: doubts whatever follows a wrong token, so that all of it is weak."""
    old = replace(draft("abxdef", ()), token_ids=(*b"abxdef", END))
    verdict, refinement = regenerate(old, "abcdef")
    assert refinement.text == "abcdef"
    assert (refinement.guarantee, refinement.denoising_steps) == ("guarded", 0)
    assert verdict.accepted
    assert "rewritten by the refiner" in refinement.edits[0].why


@pytest.mark.parametrize("scorer", ["self", "entropy"])
def test_only_what_the_scorer_doubts_is_written_again(scorer: Scorer) -> None:
    """The draft's own doubt is at one token: the next two are the draft's in the same place."""
    doubts = (-0.1, -0.1, -5.0, -0.1, -0.1, -0.1, -0.1)
    old = draft("abxdef", doubts)
    old = replace(old, token_ids=(*b"abxdef", END), entropy=tuple(-one for one in doubts))
    params = replace(REFINER, scorer=scorer)
    _, refinement = regenerate(old, "abcdef", params)
    assert refinement.text == "abcdef"
    assert refinement.forward_passes == 4  # both answers read whole, "c" and "d" written
    assert refinement.accepted_tokens == 6


def test_a_rewrite_of_another_length_meets_the_draft_at_two_tokens() -> None:
    doubts = (-0.1, -0.1, -5.0, -0.1, -0.1, -0.1, -0.1)
    old = replace(draft("abxdef", doubts), token_ids=(*b"abxdef", END))
    _, refinement = regenerate(old, "abccdef", replace(REFINER, scorer="self"))
    assert refinement.text == "abccdef"


def test_the_refiners_words_are_kept_only_if_the_whole_is_likelier() -> None:
    doubts = (-0.1, -5.0, -0.1)
    old = replace(draft("ab", doubts), token_ids=(*b"ab", END))
    _, refinement = regenerate(old, "ab", replace(REFINER, scorer="self"))
    assert (refinement.text, refinement.edits) == ("ab", ())


def test_entropy_finds_weak_tokens_for_the_drafter_too() -> None:
    old = replace(draft("abxd", (-1, -1, -5, -1)), entropy=(0.1, 0.1, 3.5, 0.1))
    _, refinement, asked = mend(
        old, draft("abcd", (-1, -1, -2, -1)), replace(SELF, scorer="entropy")
    )
    assert asked == [(ord("a"), ord("b"), None, ord("d"))]
    assert refinement.text == "abcd"
