"""A tokenizer for random models."""

import pytest
from jinja2 import Template
from tokenizers import Tokenizer, models, pre_tokenizers

from hybrid.gemma.tokenizer import ChatTokenizer


@pytest.fixture(scope="session")
def word_tokenizer() -> ChatTokenizer:
    """One token a word, w0 to w60, and prompts as they are written."""
    words = {f"w{index}": index for index in range(61)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return ChatTokenizer(tokenizer, Template("{{ messages[-1].content }}"), {})
