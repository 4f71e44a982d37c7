"""Text to ids and back, pieces that add up, and conversations through the chat template."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from hybrid.conversation.tokenizer import ChatTokenizer
from hybrid.errors import CheckpointError, RequestError
from hybrid.types import Message

SPECIAL = ["<pad>", "<eos>", "<bos>", "<turn>"]
TEMPLATE = """
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message.role == "system" and not loop.first -%}
        {{- raise_exception("a system message comes first") -}}
    {%- endif -%}
    <turn>{{ message.role }}: {{ message.content }}{{ eos_token }}
{%- endfor -%}
{%- if add_generation_prompt %}<turn>assistant:{% endif -%}
"""


def byte_level() -> Tokenizer:
    """Bytes and a few merges; a space is put before the text and taken off again."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "hell"), ("â", "Ĥ")]
    words = [*SPECIAL, *alphabet, *("".join(merge) for merge in merges)]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """The published models' kind: words with a visible space, and bytes for the rest."""
    words = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdehlo", "he", "ll", "▁he"]
    vocabulary = {word: index for index, word in enumerate(words)}
    merges = [("h", "e"), ("l", "l"), ("▁", "he")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def save(folder: Path, tokenizer: Tokenizer, template: str = TEMPLATE) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": {"content": "<bos>", "special": True}, "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture(scope="module", params=[byte_level, byte_fallback])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ChatTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    return ChatTokenizer.from_directory(save(folder, request.param()))


@given(text=st.text())
@settings(deadline=None)
def test_text_survives(tokenizer: ChatTokenizer, text: str) -> None:
    if not any(special in text for special in SPECIAL) and "▁" not in text:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(ids=st.lists(st.integers(0, 264), max_size=30))
@settings(deadline=None, max_examples=500)
def test_pieces_of_any_tokens_add_up(tokenizer: ChatTokenizer, ids: list[int]) -> None:
    pieces = tokenizer.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids)


@given(text=st.text(st.sampled_from("hello a€😀é")))
@settings(deadline=None)
def test_pieces_of_text_are_whole_characters(tokenizer: ChatTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    pieces = tokenizer.pieces(ids)
    assert "".join(pieces) == text
    for count in range(len(ids) + 1):
        assert text.startswith("".join(pieces[:count]))


def test_a_split_character_belongs_to_the_token_that_completes_it(tokenizer: ChatTokenizer) -> None:
    pieces = tokenizer.pieces(tokenizer.encode("he€a"))
    assert pieces[-3:] == ["", "€", "a"]


def test_special_tokens_have_no_text(tokenizer: ChatTokenizer) -> None:
    ids = [2, *tokenizer.encode("he"), 1, 0, 0]
    assert tokenizer.decode(ids) == "he"
    assert tokenizer.pieces(ids)[-3:] == ["", "", ""]
    assert tokenizer.pieces([]) == []


def test_a_conversation_goes_through_the_template(tokenizer: ChatTokenizer) -> None:
    turns = [Message("user", "hello"), Message("assistant", "ha"), Message("user", "he")]
    expected = "<bos><turn>user: hello<eos><turn>assistant: ha<eos><turn>user: he<eos>"
    expected += "<turn>assistant:"
    assert tokenizer.encode_conversation(turns) == tokenizer.encode(expected, control_tokens=True)
    assert tokenizer.encode_conversation(turns)[:2] == [2, 3]


def test_a_conversation_that_the_template_refuses(tokenizer: ChatTokenizer) -> None:
    with pytest.raises(RequestError, match="a system message comes first") as raised:
        tokenizer.encode_conversation([Message("user", "a"), Message("system", "b")])
    assert raised.value.field == "messages"


def test_the_same_as_transformers(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = save(tmp_path, byte_level())
    config = {"bos_token": "<bos>", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    ours = ChatTokenizer.from_directory(folder)
    turns = [Message("system", "he ll"), Message("user", "hello € 😀")]
    expected = theirs.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in turns],
        add_generation_prompt=True,
        return_dict=True,
    )["input_ids"]
    assert ours.encode_conversation(turns) == expected
    assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True)


def test_a_template_in_the_configuration(tmp_path: Path) -> None:
    folder = save(tmp_path, byte_fallback())
    (folder / "chat_template.jinja").unlink()
    config = {"bos_token": "<bos>", "chat_template": "{{ bos_token }}{{ messages[0].content }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = ChatTokenizer.from_directory(folder)
    ids = tokenizer.encode_conversation([Message("user", "hello")])
    assert ids == [2, *tokenizer.encode("hello")]


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("broken", [False, True])
def test_files_that_are_missing_or_broken(tmp_path: Path, file: str, broken: bool) -> None:
    save(tmp_path, byte_level())
    (tmp_path / file).unlink()
    if broken:
        (tmp_path / file).write_text("{% if {")
    with pytest.raises(CheckpointError) as raised:
        ChatTokenizer.from_directory(tmp_path)
    assert Path(raised.value.file).name == file


def test_a_template_cannot_reach_python(tmp_path: Path) -> None:
    escape = "{{ messages.__class__.__mro__ }}{{ cycler.__init__.__globals__.os }}"
    tokenizer = ChatTokenizer.from_directory(save(tmp_path, byte_level(), escape))
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja.*SecurityError"):
        tokenizer.encode_conversation([Message("user", "a")])
