"""Text to token ids and back, and conversations through the model folder's own chat template.

It stands on `tokenizers` and a Jinja sandbox alone: transformers' tokenizers take 0.9 s before the
first token, this takes 0.04 s (two-core CPU). Text that spells control tokens stays text.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Self

from tokenizers import Tokenizer

from hybrid.conversation.channels import Channels, without_name
from hybrid.conversation.control_tokens import ControlTokens
from hybrid.conversation.template import ChatTemplate
from hybrid.errors import CheckpointError, HybridError, RequestError
from hybrid.types import Message, PromptFormat

_REMEMBERED = 32  # conversations
_INCOMPLETE = "\ufffd"  # what a decoder writes for bytes that are no character yet
_ANCHORS = ("\n", ".", "a")  # text to put before a piece that continues a line
_PROBES = (
    (Message("user", " Hello \n"),),
    (Message("system", "Be brief."), Message("user", "Hello")),
    (Message("developer", "Be brief."), Message("user", "Hello")),
    (Message("user", "1"), Message("assistant", " 2 "), Message("user", "3")),
    (Message("user", "ab", ("a", "b")),),
    (Message("user", "1"), Message("assistant", "2")),
    (Message("user", "1"), Message("assistant", "2"), Message("tool", "3")),
)


class ChatTokenizer:
    """A tokenizer and the chat template that the model was trained with."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer, self.template = tokenizer, template
        self._control = ControlTokens(tokenizer, template.source)
        added = tokenizer.get_added_tokens_decoder()
        self._channels = Channels.of({token.content: number for number, token in added.items()})
        self._anchor = tokenizer.encode("a", add_special_tokens=False).ids[-1:]
        self._anchor_text = self._decode(self._anchor)
        self._texts: dict[int, str | None] = {}
        # A request is asked for its tokens by the planner, the drafter and the refiner.
        self._conversation = lru_cache(_REMEMBERED)(self._encode_conversation)

    @classmethod
    def from_directory(cls, path: str | Path) -> Self:
        """The tokenizer of a model folder; CheckpointError if a file is missing or broken."""
        directory = Path(path)
        template = ChatTemplate.from_directory(directory)
        file = directory / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(str(file), "missing file")
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as problem:  # the library raises Exception itself
            raise CheckpointError(str(file), f"not a tokenizer: {problem}") from None
        tokenizer.no_truncation()  # whatever state was saved; transformers resets it too
        tokenizer.no_padding()
        return cls(tokenizer, template)

    @cached_property
    def prompt_format(self) -> PromptFormat:
        """How conversations are written; its `rendering` is a hash of some, or of their errors."""
        rendered = hashlib.sha256()
        for messages in _PROBES:
            try:
                text = self.template.render(messages)
            except HybridError as error:
                text = type(error).__name__
            rendered.update(f"{text}\0".encode(errors="surrogatepass"))
        template = self.template
        return PromptFormat(template.sha256, template.revision, rendered.hexdigest())

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token ids by their text, without special and added tokens."""
        words: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=False)
        return words

    def encode_conversation(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the conversation, ending where the model's answer begins.

        Where its last message is the assistant's, the answer continues it. Raises RequestError for
        a conversation that the template does not allow, CheckpointError for a template that fails.
        """
        return list(self._conversation(tuple(messages)))

    def _encode_conversation(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        text = self.template.render([self._control.mark(message) for message in messages])
        return tuple(self._encode_pieces(self._control.pieces(text)))

    def is_plain(self, messages: Sequence[Message]) -> bool:
        """Whether any server's chat endpoint reads the conversation as it is meant.

        Not one to be continued, nor one that spells control tokens or comes in parts.
        """
        return messages[-1].role != "assistant" and not any(
            message.parts or self._control.are_spelled(message.content) for message in messages
        )

    def encode(self, text: str, control_tokens: bool = False) -> list[int]:
        """Token ids of the text, with nothing added before or after it.

        With `control_tokens`, those that it spells are read as such. RequestError for a text that
        the tokenizer cannot keep apart from its control tokens.
        """
        return (
            self._encode(text) if control_tokens else self._encode_text(text, self._encode_pieces)
        )

    def encode_continuation(self, text: str) -> list[int]:
        """Token ids of text that follows other text, without the space that starts a line."""
        return self._encode_text(
            text, lambda pieces: [i for p in pieces for i in self._following(p)]
        )

    def _encode_text(self, text: str, encode: Callable[[Iterable[str]], list[int]]) -> list[int]:
        ids = encode(self._control.cut(text))
        if not self._control.numbers.isdisjoint(ids):
            ids = encode(text)  # character by character
            if not self._control.numbers.isdisjoint(ids):
                allowed = "the model's tokenizer has no other tokens for it than control tokens"
                raise RequestError("prompt", text[:60], allowed)
        return ids

    def _encode_pieces(self, pieces: Iterable[str]) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            if piece:
                ids += self._following(piece) if ids else self._encode(piece)
        return ids

    def _follow_pieces(self, pieces: Iterable[str]) -> list[int]:
        return [token for piece in pieces if piece for token in self._following(piece)]

    def _following(self, text: str) -> list[int]:
        for anchor in _ANCHORS:
            before, whole = self._encode(anchor), self._encode(anchor + text)
            if whole[: len(before)] == before:
                return whole[len(before) :]
        return self._encode(text)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of an answer's tokens: special ones and thoughts left out."""
        if self._channels.close is None and self._channels.open is None:
            return self._decode(token_ids)
        thoughts = self._channels.is_thought(token_ids)
        pairs = zip(token_ids, thoughts, strict=True)
        return self._decode([token for token, is_thought in pairs if not is_thought])

    def decode_thought(self, token_ids: Sequence[int]) -> str:
        """The text of what an answer's tokens think, without the name of the channel."""
        markers = {self._channels.open, self._channels.close}
        pairs = zip(token_ids, self._channels.is_thought(token_ids), strict=True)
        thought = [token for token, is_thought in pairs if is_thought and token not in markers]
        return without_name(self._decode(thought))

    def _decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The text that each token adds; joined, they are `decode` of the whole.

        A character split over tokens belongs to the token that completes it.
        """
        thoughts = self._channels.is_thought(token_ids)
        if any(thoughts):
            answer = [token for token, is_t in zip(token_ids, thoughts, strict=True) if not is_t]
            shown = iter(self.pieces(answer))
            return ["" if is_thought else next(shown) for is_thought in thoughts]
        whole = self._decode(token_ids)
        pieces: list[str] = []
        for incomplete, run in groupby(token_ids, key=lambda token: self._text(token) is None):
            if incomplete:
                tokens = [*self._anchor, *run]
                parts = self._pieces_by_prefix(tokens, self._decode(tokens))
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
            text = self._decode([*self._anchor, token]).removeprefix(self._anchor_text)
            self._texts[token] = None if _INCOMPLETE in text else text
        return self._texts[token]

    def _pieces_by_prefix(self, token_ids: Sequence[int], whole: str) -> list[str]:
        """`pieces` by decoding every prefix: slow, and right for any decoder."""
        pieces, done = [], 0
        for count in range(1, len(token_ids) + 1):
            text = whole if count == len(token_ids) else self._decode(token_ids[:count])
            complete = count == len(token_ids) or not text.endswith(_INCOMPLETE)
            grows = complete and len(text) > done and whole.startswith(text)
            pieces.append(text[done:] if grows else "")
            done = len(text) if grows else done
        return pieces
