"""Conversations give the ids that transformers gives, from every file that templates may be in."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from hybrid.conversation.tokenizer import ChatTokenizer
from hybrid.embedded import weights_path
from hybrid.errors import CheckpointError, RequestError
from hybrid.types import Message, Role

MARKERS = ("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool_response>", "<tool_response|>")
# The shape of Gemma 4's: turns of a model called "model", thoughts cut from the history.
TURNS = """
{%- macro answer_of(text) -%}
    {%- set ns = namespace(kept='') -%}
    {%- for part in text.split('<channel|>') -%}
        {%- set ns.kept = ns.kept + part.split('<|channel>')[0] -%}
    {%- endfor -%}
    {{- ns.kept | trim -}}
{%- endmacro -%}
{%- macro text_of(content, is_model) -%}
    {%- if content is string -%}
        {{- answer_of(content) if is_model else content | trim -}}
    {%- else -%}
        {%- for part in content if part['type'] == 'text' -%}
            {{- answer_of(part['text']) if is_model else part['text'] | trim -}}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- set turns = messages -%}
{%- if messages[0]['role'] in ['system', 'developer'] -%}
    {{- '<|turn>system\n' + text_of(messages[0]['content'], false) + '<turn|>\n' -}}
    {%- set turns = messages[1:] -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if message.role == 'tool' -%}
        {{- '<|tool_response>' ~ (message.content | tojson) ~ '<tool_response|>' -}}
        {%- continue -%}
    {%- elif message.role in ['system', 'developer'] -%}
        {{- raise_exception('system comes first, not at ' ~ loop.index) -}}
    {%- endif -%}
    {{- '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' -}}
    {%- generation -%}{{- text_of(message['content'], message.role == 'assistant') -}}
    {%- endgeneration -%}
    {{- '<turn|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|turn>model\n' -}}
    {%- if not enable_thinking | default(false) %}{{ '<|channel>thought\n<channel|>' }}{% endif -%}
{%- endif -%}
"""
PLAIN = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ bos_token }}{% endif %}"
    "[{{ m['role'] | upper }}] {{ m['content'] }}{{ eos_token if not loop.last }}{% endfor %}"
    "{% if documents is none and tools is none %}{{ sep_token | default('-') }}{% endif %}"
    "{{ {'b': [1, 'é'], 'a': none} | tojson(indent=2, sort_keys=true, separators=(',', ':')) }}"
    "{{ {'b': 'é'} | tojson(ensure_ascii=True) }}{{ strftime_now('%Y') }}{{ dict(a=1)['a'] }}"
)
TEXT = st.text(st.sampled_from("ab \n\té😀{}%<>|'\"`"), min_size=1, max_size=12)


def make_tokenizer() -> Tokenizer:
    """Bytes, special tokens, and markers of which some are special and some are not."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: index for index, word in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*special, *MARKERS[:2]])
    tokenizer.add_tokens([AddedToken(marker, normalized=False) for marker in MARKERS[2:]])
    tokenizer.add_tokens(["\n\n"])  # an added token that is ordinary text
    return tokenizer


def save(folder: Path, template: Any, **settings: Any) -> Any:
    """A folder as transformers writes it, and the tokenizer that it reads from there."""
    from transformers import PreTrainedTokenizerFast

    names = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    fast = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(), **names)
    fast.chat_template = template
    fast.save_pretrained(folder, **settings)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def rendered(theirs: Any, conversation: list[Message]) -> list[int] | None:
    """transformers' ids, None where it or the template refuses."""
    turns = [
        {
            "role": turn.role,
            "content": [{"type": "text", "text": part} for part in turn.parts] or turn.content,
        }
        for turn in conversation
    ]
    last = conversation[-1].role == "assistant"
    try:
        ids: list[int] = theirs.apply_chat_template(
            turns,
            add_generation_prompt=not last,
            continue_final_message=last,
            return_dict=False,
        )
    except Exception:
        return None
    return ids


def ours(tokenizer: ChatTokenizer, conversation: list[Message]) -> list[int] | None:
    try:
        return tokenizer.encode_conversation(conversation)
    except RequestError:
        return None


def message(role: Role, texts: list[str]) -> Message:
    return Message(role, "".join(texts), tuple(texts) if len(texts) > 1 else (), True)


@st.composite
def conversations(draw: st.DrawFn, parts: int) -> list[Message]:
    roles: list[Role] = ["user", "assistant"] * draw(st.integers(1, 3))
    roles = roles[: draw(st.integers(1, len(roles)))]
    if draw(st.booleans()):
        roles.insert(0, draw(st.sampled_from(["system", "developer"])))
    if draw(st.integers(0, 5)) == 0:
        roles.append("tool")
    if draw(st.integers(0, 5)) == 0:
        roles = draw(st.permutations(roles))
    texts = st.lists(TEXT, min_size=1, max_size=parts)
    return [message(role, draw(texts)) for role in roles]


@pytest.fixture(scope="module", params=[TURNS, PLAIN, "embedded"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, ChatTokenizer]:
    from transformers import AutoTokenizer

    if request.param == "embedded":
        folder = weights_path("drafter")
        return AutoTokenizer.from_pretrained(folder), ChatTokenizer.from_directory(folder)
    folder = tmp_path_factory.mktemp("template")
    return save(folder, request.param), ChatTokenizer.from_directory(folder)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_conversations_as_transformers_renders_them(
    pair: tuple[Any, ChatTokenizer], data: st.DataObject
) -> None:
    theirs, mine = pair
    parts = 3 if mine.template.source == TURNS else 1
    conversation = data.draw(conversations(parts))
    assert ours(mine, conversation) == rendered(theirs, conversation)


def test_parts_are_one_text_to_a_template_that_knows_none(tmp_path: Path) -> None:
    save(tmp_path, PLAIN)
    tokenizer = ChatTokenizer.from_directory(tmp_path)
    whole = tokenizer.encode_conversation([Message("user", "ab")])
    assert tokenizer.encode_conversation([Message("user", "ab", ("a", "b"))]) == whole


@pytest.mark.parametrize("jinja_files", [True, False])
def test_named_templates(tmp_path: Path, jinja_files: bool) -> None:
    named = {"default": "{{ messages[0].content }}!", "tool_use": "{{ tools }}", "rag": "{{ x }}"}
    theirs = save(tmp_path, named, save_jinja_files=jinja_files)
    assert (tmp_path / "additional_chat_templates").exists() == jinja_files
    conversation = [Message("user", "hello")]
    mine = ChatTokenizer.from_directory(tmp_path)
    assert ours(mine, conversation) == rendered(theirs, conversation) == mine.encode("hello!")


def test_named_templates_without_a_default(tmp_path: Path) -> None:
    save(tmp_path, {"rag": "{{ x }}"}, save_jinja_files=False)
    with pytest.raises(CheckpointError, match="'default', only rag"):
        ChatTokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("given", [5, [], ["x"], [{"name": "default"}], {"default": 1}])
def test_a_chat_template_that_is_none(tmp_path: Path, given: Any) -> None:
    save(tmp_path, "x")
    (tmp_path / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": given}))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json.*chat_template"):
        ChatTokenizer.from_directory(tmp_path)


def test_special_tokens_of_the_older_file(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    save(tmp_path, "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    tokens = {name: config.pop(name) for name in ("bos_token", "eos_token")}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokens["eos_token"] = {"content": "<eos>", "lstrip": False, "special": True}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(tokens))
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    conversation = [Message("user", "a")]
    mine = ChatTokenizer.from_directory(tmp_path)
    assert ours(mine, conversation) == rendered(theirs, conversation)
    assert mine.encode_conversation(conversation) == [2, *mine.encode("a"), 1]


def test_gemmas_own_special_tokens(tmp_path: Path) -> None:
    save(tmp_path, "{{ bos_token }}{{ messages[0].content }}")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["bos_token"]
    config["tokenizer_class"] = "GemmaTokenizer"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    mine = ChatTokenizer.from_directory(tmp_path)
    assert mine.encode_conversation([Message("user", "a")]) == [2, *mine.encode("a")]


def test_an_answer_continues_the_assistants_message(tmp_path: Path) -> None:
    save(tmp_path, TURNS)
    tokenizer = ChatTokenizer.from_directory(tmp_path)
    ids = tokenizer.encode_conversation([Message("user", "a"), Message("assistant", "b ")])
    text = "<bos><|turn>user\na<turn|>\n<|turn>model\nb"
    assert ids == tokenizer.encode(text, control_tokens=True)


def test_a_message_that_the_template_drops_cannot_be_continued(tmp_path: Path) -> None:
    save(tmp_path, "{{ messages[0].content }}")
    tokenizer = ChatTokenizer.from_directory(tmp_path)
    with pytest.raises(RequestError, match="cannot be continued"):
        tokenizer.encode_conversation([Message("user", "a"), Message("assistant", "b")])
