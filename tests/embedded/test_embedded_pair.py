"""The shipped pair: its files, its tokenizer, and what `evaluation.json` says of it."""

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hybrid.conversation.tokenizer import ChatTokenizer
from hybrid.embedded import PairRole, weights_path
from training.evaluate import separation

SPECIAL = (
    *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<boi>", "<eoi>", "<image>"),
    *("<|user>", "<|model>", "<|system>"),
)
ROLES: tuple[PairRole, ...] = ("drafter", "refiner")


def test_the_pair_is_small_and_complete() -> None:
    sizes = [file.stat().st_size for role in ROLES for file in weights_path(role).iterdir()]
    assert sum(sizes) <= 8 * 2**20
    for role in ROLES:
        names = {file.name for file in weights_path(role).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
        assert "hf_quant_config.json" in names


def test_drafter_and_refiner_share_a_tokenizer() -> None:
    first, second = ((weights_path(role) / "tokenizer.json").read_bytes() for role in ROLES)
    assert first == second


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_can_be_encoded(text: str) -> None:
    tokenizer = ChatTokenizer.from_directory(weights_path("drafter"))
    assume(not any(special in text for special in SPECIAL))
    ids = tokenizer.encode(text)
    words = " ".join(text.split())
    assert " ".join(tokenizer.decode(ids).split()) == words or not words.isascii()


def test_separation_is_the_chance_of_the_right_order() -> None:
    assert separation([-1, -2, -3, -4], [True, True, False, False]) == 1.0
    assert separation([-1, -1], [True, False]) == 0.5
    assert separation([-4, -3], [True, False]) == 0.0
    assert separation([-1, -2], [True, True]) is None
