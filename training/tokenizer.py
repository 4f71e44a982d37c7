"""The pair's tokenizer: byte-level BPE in which every word of the tasks is one token.

A leading space belongs to its word, as in the published tokenizers, and digits stand alone. Any
text can be encoded, since all 256 bytes are tokens. Learnt once, by `python -m
training.tokenizer FOLDER`, and then part of the models: training loads it from the package,
so that a change to a task moves no token under trained weights.
"""

import random
import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hybrid.embedded import weights_path
from hybrid.embedded.tasks import TASKS, draw

PAD, EOS, BOS, UNK, MASK, USER, MODEL = range(7)
SPECIAL_TOKENS = (
    *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|user>", "<|model>", "<|system>"),
    *("<boi>", "<eoi>", "<image>"),
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|model>{{ message['content'] }}{{ eos_token }}"
    "{% elif message['role'] == 'tool' %}{{ raise_exception('this model knows no tool turns') }}"
    "{% else %}<|{{ 'user' if message['role'] == 'user' else 'system' }}>{{ message['content'] }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|model>{% endif %}"
)
_VOCABULARY_LIMIT = 1024
_SAMPLES_PER_TASK = 3000


def load() -> PreTrainedTokenizerFast:
    """The shipped tokenizer."""
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
        weights_path("drafter")
    )
    return tokenizer


def build() -> PreTrainedTokenizerFast:
    """A vocabulary learnt from the tasks' training text as it is now."""
    rng = random.Random(0)
    instances = [draw(task, rng, "train") for task in TASKS for _ in range(_SAMPLES_PER_TASK)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\d| ?[A-Za-z]+| ?[^\sA-Za-z\d]|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.train_from_iterator(
        (text for instance in instances for text in (instance.prompt, instance.answer)),
        trainers.BpeTrainer(
            vocab_size=_VOCABULARY_LIMIT,
            min_frequency=2,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        mask_token="<mask>",
        padding_side="left",
        additional_special_tokens=list(SPECIAL_TOKENS[USER:]),
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


if __name__ == "__main__":
    build().save_pretrained(Path(sys.argv[1]))
