"""Text to token ids and back, and conversations through the model folder's own chat template.

It stands on `tokenizers` and a Jinja sandbox alone: transformers' tokenizers take 0.9 s before the
first token, this takes 0.04 s (two-core CPU). Special tokens that are written out in a text are
read as such, as everywhere in the field.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn, Self

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from hybrid.errors import CheckpointError, RequestError
from hybrid.gemma.fields import Fields
from hybrid.types import Message

_REMEMBERED = 32  # conversations
_INCOMPLETE = "\ufffd"  # what a decoder writes for bytes that are no character yet


class ChatTokenizer:
    """A tokenizer and the chat template that the model was trained with."""

    def __init__(self, tokenizer: Tokenizer, template: Template, names: Mapping[str, str]) -> None:
        self._tokenizer, self._template, self._names = tokenizer, template, names
        self._anchor = tokenizer.encode("a", add_special_tokens=False).ids[-1:]
        self._anchor_text = self.decode(self._anchor)
        self._texts: dict[int, str | None] = {}
        # A request is asked for its tokens by the planner, the drafter and the refiner.
        self._conversation = lru_cache(_REMEMBERED)(self._encode_conversation)

    @classmethod
    def from_directory(cls, path: str | Path) -> Self:
        """The tokenizer of a model folder; CheckpointError if a file is missing or broken."""
        directory = Path(path)
        config = Fields.read(directory / "tokenizer_config.json")
        file = directory / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(str(file), "missing file")
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as problem:  # the library raises Exception itself
            raise CheckpointError(str(file), f"not a tokenizer: {problem}") from None
        tokenizer.no_truncation()  # whatever state was saved; transformers resets it too
        tokenizer.no_padding()
        return cls(tokenizer, _read_template(directory, config), _special_tokens(config))

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token ids by their text, without special and added tokens."""
        words: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=False)
        return words

    def encode_conversation(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the conversation, ending where the model's answer begins.

        Raises RequestError for a conversation that the template does not allow.
        """
        return list(self._conversation(tuple(messages)))

    def _encode_conversation(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self._template.render(
                messages=turns, add_generation_prompt=True, tools=None, **self._names
            )
        except TemplateError as problem:
            roles = [message.role for message in messages]
            raise RequestError("messages", roles, f"the chat template says: {problem}") from None
        return tuple(self.encode(text))

    def encode(self, text: str) -> list[int]:
        """Token ids of the text, with nothing added before or after it."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the tokens, special ones left out."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The text that each token adds; joined, they are `decode` of the whole.

        A character split over tokens belongs to the token that completes it.
        """
        whole = self.decode(token_ids)
        pieces: list[str] = []
        for incomplete, run in groupby(token_ids, key=lambda token: self._text(token) is None):
            if incomplete:
                tokens = [*self._anchor, *run]
                parts = self._pieces_by_prefix(tokens, self.decode(tokens))
                pieces += parts[len(self._anchor) :]
            else:
                pieces += [self._text(token) or "" for token in run]
        surplus = sum(map(len, pieces)) - len(whole)
        first = next((index for index, piece in enumerate(pieces) if piece), None)
        if surplus > 0 and first is not None:  # a decoder may strip the first space
            pieces[first] = pieces[first][surplus:]
        return pieces if "".join(pieces) == whole else self._pieces_by_prefix(token_ids, whole)

    def _text(self, token: int) -> str | None:
        """What the token adds after other text; None for a part of a character."""
        if token not in self._texts:
            text = self.decode([*self._anchor, token]).removeprefix(self._anchor_text)
            self._texts[token] = None if _INCOMPLETE in text else text
        return self._texts[token]

    def _pieces_by_prefix(self, token_ids: Sequence[int], whole: str) -> list[str]:
        """`pieces` by decoding every prefix: slow, and right for any decoder."""
        pieces, done = [], 0
        for count in range(1, len(token_ids) + 1):
            text = whole if count == len(token_ids) else self.decode(token_ids[:count])
            complete = count == len(token_ids) or not text.endswith(_INCOMPLETE)
            grows = complete and len(text) > done and whole.startswith(text)
            pieces.append(text[done:] if grows else "")
            done = len(text) if grows else done
        return pieces


def _read_template(directory: Path, config: Fields) -> Template:
    file = directory / "chat_template.jinja"
    source = file.read_text("utf-8") if file.is_file() else config.get("chat_template")
    if not isinstance(source, str):
        raise CheckpointError(str(file), "missing, and tokenizer_config.json has no chat_template")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(source)
    except TemplateError as problem:
        raise CheckpointError(str(file), f"not a Jinja template: {problem}") from None


def _special_tokens(config: Fields) -> dict[str, str]:
    """The named special tokens, which templates use as variables: bos_token, eos_token, ..."""
    tokens = {name: token for name, token in config.values.items() if name.endswith("_token")}
    texts = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in tokens.items()
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _refuse(message: str) -> NoReturn:
    """Templates call this on conversations that they do not allow."""
    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    """JSON for a prompt: Jinja's own filter would escape it for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
