"""Every refine mode over a scripted refiner: what it keeps, what it costs, what it promises."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.deadline import Deadline
from hybrid.errors import BackendError, Cancelled, CapabilityError, RequestError
from hybrid.refiners.edits import find_edits
from hybrid.refiners.refine import MODES, refine
from hybrid.refiners.scripted import END, ScriptedRefiner
from hybrid.types import Canvas, Draft, FinishReason, Refinement, RefineParams, Request, Verdict

ANSWER = "the quick brown fox"
REFINER = ScriptedRefiner({"say it": ANSWER})
WHOLE = (*ANSWER.encode(), END)


def draft_of(
    token_ids: tuple[int, ...], reason: FinishReason = "stop", self_logprob: float | None = None
) -> Draft:
    scores = () if self_logprob is None else (self_logprob,) * len(token_ids)
    text = REFINER.decode(token_ids)
    canvas = Canvas(4, True, 0.0)
    return Draft(token_ids, text, (0.0,) * len(token_ids), (canvas,), reason, scores)


def text_draft(text: str, **options: Any) -> Draft:
    return draft_of((*text.encode(), END), **options)


def run(
    draft: Draft | None,
    mode: Any,
    refiner: ScriptedRefiner | None = REFINER,
    max_new_tokens: int = 64,
    deadline: Deadline | None = None,
    **params: Any,
) -> tuple[Verdict | None, Refinement | None]:
    wanted = RefineParams(mode, **params)
    return refine(refiner, Request("say it"), draft, wanted, max_new_tokens, deadline or Deadline())


def refined(draft: Draft | None, mode: Any, **options: Any) -> Refinement:
    refinement = run(draft, mode, **options)[1]
    assert refinement is not None
    return refinement


@given(st.lists(st.integers(0, END), max_size=40))
def test_verify_is_the_refiners_own_answer_for_any_draft(token_ids: list[int]) -> None:
    assert refined(draft_of(tuple(token_ids)), "verify").token_ids == WHOLE


@given(st.integers(0, len(WHOLE)), st.integers(0, END))
def test_verify_keeps_the_longest_agreeing_prefix(at: int, token: int) -> None:
    draft = draft_of((*WHOLE[:at], token, *WHOLE[at + 1 :]))
    refinement = refined(draft, "verify")
    assert refinement.token_ids == WHOLE
    if at < len(WHOLE) and token != WHOLE[at]:
        assert refinement.accepted_tokens == at
        assert refinement.forward_passes == 1 + max(0, len(WHOLE) - at - 1)


def test_verify_of_a_right_draft_is_one_pass() -> None:
    refinement = refined(text_draft(ANSWER), "verify")
    assert (refinement.forward_passes, refinement.edits) == (1, ())
    assert refinement.accepted_tokens == len(WHOLE)
    assert refinement.finish_reason == "stop"


def test_verify_goes_on_where_a_draft_was_cut() -> None:
    refinement = refined(draft_of(WHOLE[:7], reason="budget"), "verify")
    assert refinement.text == ANSWER
    assert refinement.accepted_tokens == 7


@pytest.mark.parametrize("limit", [1, 5, 19, 20, 21])
def test_no_answer_is_longer_than_allowed(limit: int) -> None:
    for draft in (text_draft(ANSWER), text_draft("the slow brown fox"), None):
        mode = "generate" if draft is None else "verify"
        refinement = refined(draft, mode, max_new_tokens=limit)
        assert refinement.token_ids == WHOLE[:limit]
        assert refinement.finish_reason == ("stop" if limit >= len(WHOLE) else "length")


def test_score_leaves_the_draft_as_it_is() -> None:
    wrong = text_draft("the quick brown cow")
    verdict, refinement = run(wrong, "score", min_token_logprob=-4.0)
    assert verdict is not None
    assert refinement is not None
    assert not verdict.accepted
    assert verdict.min_logprob == -5.0
    assert len(verdict.logprobs) == len(wrong.token_ids)
    assert refinement.token_ids == wrong.token_ids
    assert (refinement.guarantee, refinement.forward_passes) == ("draft", 1)


def test_a_drafters_own_score_needs_no_refiner() -> None:
    verdict, refinement = run(
        text_draft(ANSWER, self_logprob=-0.5), "score", refiner=None, scorer="self"
    )
    assert refinement is None
    assert verdict is not None
    assert (verdict.scorer, verdict.mean_logprob) == ("self", -0.5)


def test_cascade_takes_a_draft_that_passes() -> None:
    verdict, refinement = run(text_draft(ANSWER), "cascade", min_token_logprob=-4.0)
    assert verdict is not None
    assert refinement is not None
    assert verdict.accepted
    assert refinement.text == ANSWER
    assert refinement.forward_passes == 1


def test_cascade_may_take_what_the_refiner_would_not_have_written() -> None:
    draft = text_draft("the quick brown cow")
    assert refined(draft, "cascade", min_mean_logprob=-3.0).text == "the quick brown cow"
    assert refined(draft, "cascade", min_token_logprob=-4.0).text == ANSWER


def test_cascade_never_takes_an_unfinished_draft() -> None:
    refinement = refined(draft_of(WHOLE[:7], reason="budget"), "cascade", min_token_logprob=-9.0)
    assert refinement.text == ANSWER
    assert refinement.accepted_tokens == 7


def test_cascade_by_self_score_wakes_the_refiner_only_for_failures() -> None:
    sure = text_draft("the quick brown cow", self_logprob=-0.1)
    kept = refined(sure, "cascade", scorer="self", min_token_logprob=-1.0)
    assert (kept.text, kept.forward_passes) == ("the quick brown cow", 0)
    unsure = text_draft("the quick brown cow", self_logprob=-2.0)
    mended = refined(unsure, "cascade", scorer="self", min_token_logprob=-1.0)
    assert mended.text == ANSWER
    assert mended.forward_passes > 0


def test_an_empty_draft_is_refused_and_rewritten() -> None:
    for mode in ("cascade", "verify"):
        verdict, refinement = run(draft_of(()), mode, min_token_logprob=-4.0)
        assert verdict is not None
        assert not verdict.accepted
        assert refinement is not None
        assert refinement.text == ANSWER


def test_edits_are_the_changed_characters_of_the_drafts_text() -> None:
    draft = text_draft("the slow brown fox")
    (edit,) = refined(draft, "verify").edits
    assert draft.text[edit.start : edit.end] == edit.old
    changed = draft.text[: edit.start] + edit.new + draft.text[edit.end :]
    assert changed == ANSWER


@given(st.text(max_size=30), st.text(max_size=30))
def test_applying_all_edits_gives_the_refined_text(old: str, new: str) -> None:
    text = old
    for edit in reversed(find_edits(old, new)):
        assert text[edit.start : edit.end] == edit.old
        text = text[: edit.start] + edit.new + text[edit.end :]
    assert text == new


def test_a_deadline_in_mid_answer_is_said() -> None:
    refinement = refined(text_draft("the slow"), "verify", deadline=Deadline.after(1e-9))
    assert refinement.finish_reason == "budget"
    assert WHOLE[: len(refinement.token_ids)] == refinement.token_ids


def test_cancelling_ends_the_work() -> None:
    deadline = Deadline()
    deadline.cancel()
    with pytest.raises(Cancelled):
        run(text_draft("the slow"), "verify", deadline=deadline)


@pytest.mark.parametrize("stage", ["score", "continue"])
def test_a_failing_refiner_says_at_which_stage(stage: Any) -> None:
    with pytest.raises(BackendError) as caught:
        run(
            text_draft("the slow"),
            "verify",
            refiner=ScriptedRefiner({"say it": ANSWER}, fails_at=stage),
        )
    assert caught.value.stage == stage


def test_modes_that_need_a_refiner_say_so() -> None:
    for mode in ("verify", "cascade", "generate"):
        with pytest.raises(CapabilityError, match="names no refiner"):
            run(text_draft(ANSWER), mode, refiner=None)


def test_an_unknown_prompt_is_a_request_error() -> None:
    with pytest.raises(RequestError):
        refine(REFINER, Request("what?"), None, RefineParams("generate"), 8, Deadline())


def test_every_mode_states_its_guarantee_and_cost() -> None:
    assert {name: mode.guarantee for name, mode in MODES.items()} == {
        "score": "draft",
        "cascade": "ar_or_draft",
        "verify": "lossless",
    }
    assert all(mode.cost for mode in MODES.values())
