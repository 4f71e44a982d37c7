"""The scripted refiner keeps the promises that real ones make."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.errors import RequestError
from hybrid.protocols import Refiner
from hybrid.refiners.scripted import END, ScriptedRefiner, ScriptedSession
from hybrid.types import Request

REFINER = ScriptedRefiner({"say it": "naïve"})
ANSWER = (*"naïve".encode(), END)
texts = st.lists(st.integers(0, END), max_size=8)


def opened(room: int = 16) -> ScriptedSession:
    return REFINER.open(Request("say it"), room)


def test_it_is_a_refiner() -> None:
    refiner: Refiner = REFINER
    assert refiner.end_token_ids == {END}
    assert refiner.count_prompt_tokens(Request("say it")) == 6


def test_it_writes_its_answer_and_ends() -> None:
    session = opened()
    assert session.write((), 16) == (ANSWER, "stop")
    assert session.forward_passes == len(ANSWER)
    assert REFINER.decode(ANSWER) == "naïve"


def test_half_a_character_decodes() -> None:
    assert REFINER.decode(ANSWER[:3]) == "na\ufffd"


def test_it_is_sure_of_its_own_tokens_and_doubts_all_others() -> None:
    scores = opened().score((*ANSWER[:2], 33, 33))
    assert scores.logprobs == (-0.1, -0.1, -5.0, -5.0)
    assert scores.choices == (*ANSWER[:3], END, END)


@given(texts, texts, st.data())
def test_rewinding_leaves_no_trace(kept: list[int], more: list[int], data: st.DataObject) -> None:
    session = opened()
    session.score([*kept, *more])
    session.rewind(len(kept))
    fresh = opened()
    fresh.score(kept)
    following = data.draw(texts)
    assert session.score(following) == fresh.score(following)


def test_an_unscripted_prompt_is_refused() -> None:
    with pytest.raises(RequestError, match="scripted are \\['say it'\\]"):
        REFINER.open(Request("what?"), 8)
