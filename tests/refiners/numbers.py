"""A tokenizer for random models: prompts are token ids written as numbers."""

from collections.abc import Mapping, Sequence

from hybrid.types import Message


class NumberTokenizer:
    """The part of `ChatTokenizer` that a refiner and a drafter need."""

    vocabulary: Mapping[str, int] = {}

    def encode_conversation(self, messages: Sequence[Message]) -> list[int]:
        return [int(word) for word in messages[-1].content.split()]

    def decode(self, token_ids: Sequence[int]) -> str:
        return " ".join(map(str, token_ids))

    def decode_thought(self, token_ids: Sequence[int]) -> str:
        return ""

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        return [f"{token} " for token in token_ids]
