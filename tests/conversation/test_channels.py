"""What a model thinks is no answer, and is read apart."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.conversation.tokenizer import ChatTokenizer
from hybrid.embedded import weights_path
from tests.conversation.test_chat_templates import TURNS, save


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    folder = tmp_path_factory.mktemp("channels")
    save(folder, TURNS)
    return ChatTokenizer.from_directory(folder)


@pytest.mark.parametrize(
    ("written", "answer", "thought"),
    [
        ("so", "so", ""),
        ("<|channel>thought\nwhy<channel|>so", "so", "why"),
        ("<|channel>thought\n<channel|>so", "so", ""),
        ("a<|channel>thought\nwhy<channel|>b<turn|>", "ab", "why"),
        ("<|channel>thought\nwhy", "", "why"),
        ("why<channel|>so", "so", "why"),
        ("<|channel>thought\nx<channel|>a<|channel>thought\ny", "a", "xthought\ny"),
        ("<|channel>two words\nwhy<channel|>so", "so", "two words\nwhy"),
        ("", "", ""),
    ],
)
def test_a_thought_is_no_answer(
    tokenizer: ChatTokenizer, written: str, answer: str, thought: str
) -> None:
    ids = tokenizer.encode(written, control_tokens=True)
    assert tokenizer.decode(ids) == answer
    assert tokenizer.decode_thought(ids) == thought


TOKENS = ("a", "é", "😀", "\n", "<|channel>", "<channel|>", "<eos>", "<turn|>")


@settings(deadline=None)
@given(texts=st.lists(st.sampled_from(TOKENS)))
def test_pieces_and_answers_agree(tokenizer: ChatTokenizer, texts: list[str]) -> None:
    ids = tokenizer.encode("".join(texts), control_tokens=True)
    pieces = tokenizer.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert "channel" not in tokenizer.decode(ids)


def test_a_model_without_channels_has_no_thoughts() -> None:
    tokenizer = ChatTokenizer.from_directory(weights_path("refiner"))
    ids = tokenizer.encode("zink, iron")
    assert tokenizer.decode(ids) == "zink, iron"
    assert tokenizer.decode_thought(ids) == ""
