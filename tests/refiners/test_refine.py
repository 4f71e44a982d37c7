"""Every refine mode over a scripted refiner: what it keeps, what it costs, what it promises."""

from itertools import count
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hybrid.deadline import CancelFlag, Deadline
from hybrid.errors import BackendError, Cancelled, CapabilityError, RequestError
from hybrid.modes import MODES
from hybrid.refiners.context import RefineContext
from hybrid.refiners.edits import find_edits
from hybrid.refiners.refine import RUN, refine, write_alone
from hybrid.refiners.scripted import END, ScriptedRefiner
from hybrid.types import (
    Canvas,
    Draft,
    FinishReason,
    Refinement,
    RefineMode,
    RefineParams,
    Request,
    Verdict,
)

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
    deadline = deadline or Deadline()
    if draft is None:
        return None, write_alone(refiner, Request("say it"), max_new_tokens, deadline)
    wanted = RefineParams(mode, **params)
    return refine(
        RefineContext(Request("say it"), draft, wanted, max_new_tokens, deadline, refiner)
    )


def ending_at(poll: int) -> Deadline:
    """A deadline that has passed when it is looked at for the `poll`-th time, from 0."""
    polls = count()

    class Countdown(Deadline):
        @property
        def expired(self) -> bool:
            return next(polls) >= poll

    return Countdown()


def cancelled_at(poll: int) -> Deadline:
    """A deadline whose caller has gone away when it is asked for the `poll`-th time, from 0."""
    polls = count()

    class Countdown(CancelFlag):
        def is_set(self) -> bool:
            return next(polls) >= poll

    return Deadline(cancelled=Countdown())


def refined(draft: Draft | None, mode: Any, **options: Any) -> Refinement:
    refinement = run(draft, mode, **options)[1]
    assert refinement is not None
    return refinement


tokens = st.integers(0, END) | st.sampled_from(WHOLE)
drafts = st.builds(
    lambda kept, rest: (*WHOLE[:kept], *rest),
    st.integers(0, len(WHOLE)),
    st.lists(tokens, max_size=12),
)


@given(drafts, st.integers(1, 40))
@example((*WHOLE, END, 5), 40)
@example(WHOLE, len(WHOLE) - 1)
def test_verify_is_the_refiners_own_answer_for_any_draft(
    token_ids: tuple[int, ...], limit: int
) -> None:
    alone = refined(None, "generate", max_new_tokens=limit)
    refinement = refined(draft_of(token_ids), "verify", max_new_tokens=limit)
    assert refinement.token_ids == alone.token_ids == WHOLE[:limit]
    assert refinement.finish_reason == alone.finish_reason
    assert refinement.text == alone.text
    assert refinement.guarantee == alone.guarantee == "lossless"
    assert refinement.forward_passes <= alone.forward_passes + 1


@given(drafts, st.integers(1, 40), st.sampled_from(("refiner", "self")), st.floats(-6, 0))
def test_cascade_is_the_draft_or_the_refiners_own_answer(
    token_ids: tuple[int, ...], limit: int, scorer: str, threshold: float
) -> None:
    draft = draft_of(token_ids, self_logprob=-2.0)
    verdict, refinement = run(
        draft, "cascade", max_new_tokens=limit, scorer=scorer, min_token_logprob=threshold
    )
    assert verdict is not None
    assert refinement is not None
    is_taken = verdict.accepted and token_ids[:limit][-1:] == (END,)
    assert refinement.token_ids == (token_ids if is_taken else WHOLE)[:limit]
    assert refinement.guarantee == "ar_or_draft"


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
@pytest.mark.parametrize("text", [ANSWER, "the slow brown fox"])
def test_no_answer_is_longer_than_allowed(text: str, limit: int) -> None:
    for mode in ("verify", "cascade"):
        refinement = refined(text_draft(text), mode, max_new_tokens=limit, min_token_logprob=-4.0)
        assert refinement.token_ids == WHOLE[:limit]
        assert refinement.finish_reason == ("stop" if limit >= len(WHOLE) else "length")


def test_cascade_does_not_take_a_draft_that_is_cut_at_the_limit() -> None:
    draft = text_draft("the slow brown cow", self_logprob=-0.1)
    refinement = refined(draft, "cascade", scorer="self", max_new_tokens=5)
    assert refinement.token_ids == WHOLE[:5]


def test_score_reads_no_further_than_an_answer_may_go() -> None:
    draft = text_draft(ANSWER)
    verdict, refinement = run(draft, "score", max_new_tokens=5)
    assert verdict is not None
    assert refinement is not None
    assert len(verdict.logprobs) == 5
    assert (refinement.token_ids, refinement.finish_reason) == (draft.token_ids, "stop")


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
    assert refinement is not None
    assert (refinement.text, refinement.forward_passes) == (ANSWER, 0)
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


@pytest.mark.parametrize("mode", ["verify", "cascade"])
@pytest.mark.parametrize("scorer", ["refiner", "self"])
def test_an_empty_draft_is_refused_and_rewritten(mode: str, scorer: str) -> None:
    verdict, refinement = run(draft_of(()), mode, scorer=scorer)
    assert verdict is not None
    assert not verdict.accepted
    assert refinement is not None
    assert (refinement.text, refinement.accepted_tokens) == (ANSWER, 0)


def test_an_empty_draft_scores_nothing() -> None:
    verdict, refinement = run(draft_of(()), "score")
    assert verdict is not None
    assert (verdict.accepted, verdict.logprobs) == (False, ())
    assert verdict.reason == "the draft is empty"
    assert refinement is not None
    assert (refinement.token_ids, refinement.forward_passes) == ((), 0)


@pytest.mark.parametrize(
    ("thresholds", "reason"),
    [
        ({}, "mean log-probability -0.59, least -5.00"),
        ({"min_mean_logprob": -0.6, "min_token_logprob": -5.0},
         "mean log-probability -0.59, least -5.00"),
        ({"min_mean_logprob": -0.5}, "mean log-probability -0.59 below -0.5"),
        ({"min_token_logprob": -4.5}, "least log-probability -5.00 below -4.5"),
        ({"min_mean_logprob": -0.5, "min_token_logprob": -4.5},
         "mean log-probability -0.59 below -0.5; least log-probability -5.00 below -4.5"),
    ],
)  # fmt: skip
def test_every_threshold_that_fails_is_named(thresholds: dict[str, Any], reason: str) -> None:
    """Twenty tokens, of which two are wrong: (18 x -0.1 - 2 x 5) / 20."""
    verdict, _ = run(text_draft("the quick brown fax"), "score", **thresholds)
    assert verdict is not None
    assert verdict.reason == reason
    assert verdict.accepted == ("below" not in reason)


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


@pytest.mark.parametrize("mode", ["verify", "cascade"])
@pytest.mark.parametrize("poll", [0, 1, 7])
def test_a_deadline_in_mid_answer_leaves_the_right_start(mode: str, poll: int) -> None:
    """The agreed "the ", the refiner's next token from the same pass, then a token a poll."""
    draft = text_draft("the slow")
    refinement = refined(draft, mode, deadline=ending_at(poll), min_token_logprob=-4.0)
    assert refinement.finish_reason == "budget"
    assert refinement.accepted_tokens == 4
    assert refinement.token_ids == WHOLE[: 4 + 1 + poll]
    assert refinement.forward_passes == 1 + poll


def test_a_deadline_cuts_the_refiner_alone() -> None:
    refinement = refined(None, "generate", deadline=ending_at(3))
    assert (refinement.token_ids, refinement.finish_reason) == (WHOLE[:3], "budget")


def test_a_deadline_that_passes_while_a_right_draft_is_read_costs_nothing() -> None:
    refinement = refined(text_draft(ANSWER), "verify", deadline=Deadline.after(0.0))
    assert (refinement.token_ids, refinement.finish_reason) == (WHOLE, "stop")


@pytest.mark.parametrize("mode", ["verify", "cascade", "generate"])
@pytest.mark.parametrize("poll", [0, 3])
def test_cancelling_ends_the_work_in_mid_answer(mode: str, poll: int) -> None:
    draft = None if mode == "generate" else text_draft("the slow")
    with pytest.raises(Cancelled):
        run(draft, mode, deadline=cancelled_at(poll), min_token_logprob=-4.0)


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
    for mode in (mode for mode in RUN if MODES[mode].needs_refiner):
        with pytest.raises(CapabilityError, match="names no refiner"):
            run(text_draft(ANSWER), mode, refiner=None)
    with pytest.raises(CapabilityError, match="refine mode generate"):
        run(None, "generate", refiner=None)


def test_an_unknown_prompt_is_a_request_error() -> None:
    with pytest.raises(RequestError):
        write_alone(REFINER, Request("what?"), 8, Deadline())


def test_every_mode_states_its_guarantee_and_cost() -> None:
    assert [*MODES] == [*get_args(RefineMode)]
    assert {*RUN} == {*MODES} - {"none", "generate"}
    assert {name: mode.guarantee for name, mode in MODES.items()} == {
        "none": "draft",
        "score": "draft",
        "best_of": "draft",
        "repair": "guarded",
        "guide": "none",
        "cascade": "ar_or_draft",
        "verify": "lossless",
        "rewrite": "none",
        "generate": "lossless",
    }


def test_the_documentation_says_what_the_data_says() -> None:
    document = (Path(__file__).parents[2] / "docs" / "refining.md").read_text("utf-8")
    for name, mode in MODES.items():
        row = f"| `{name}` | {mode.does} | {mode.answer} | `{mode.guarantee}` |\n"
        assert row in document, row
