"""Training examples: token ids of drawn instances, and right answers near a given canvas."""

import random
import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from hybrid.embedded import PairRole
from hybrid.embedded.lexicon import CATEGORIES
from hybrid.embedded.tasks import Instance, draw
from training.tokenizer import BOS, EOS, MODEL, USER

# Shares of the tasks in training: more for those that are learnt late.
SHARES: dict[PairRole, dict[str, float]] = {
    "drafter": {
        "translate": 0.8,
        "numbers": 0.8,
        "summarize": 0.4,
        "fill": 1.2,
        "question": 0.6,
        "list": 1.6,
        "sort": 0.8,
        "code": 1.8,
        "reason": 3.0,
        "add": 0.8,
    },
    "refiner": {
        "translate": 0.8,
        "numbers": 0.8,
        "summarize": 0.4,
        "fill": 2.0,
        "question": 1.6,
        "list": 1.0,
        "sort": 2.0,
        "code": 0.8,
        "reason": 1.0,
        "add": 1.0,
    },
}


@dataclass(frozen=True, slots=True)
class Example:
    """An instance as token ids: the rendered prompt, and the answer with its end token."""

    instance: Instance
    prompt_ids: list[int]
    answer_ids: list[int]


class ExampleSource:
    """An endless stream of training examples, the same for the same seed."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, role: PairRole, seed: str) -> None:
        self._tokenizer, self._shares = tokenizer, SHARES[role]
        self._random = random.Random(seed)
        self._words: dict[str, list[int]] = {}
        self._items = {
            category: {self._encode(item)[0]: item for item in items}
            for category, items in CATEGORIES.items()
        }
        self._digits = {self._encode(str(digit))[0]: digit for digit in range(10)}
        self._digit_ids = {digit: token for token, digit in self._digits.items()}

    def reseed(self, seed: str) -> None:
        """Go on with another stream of examples."""
        self._random = random.Random(seed)

    def batch(self, count: int) -> list[Example]:
        """Examples in order of prompt length, so that halves of a batch need little padding."""
        tasks = self._random.choices(list(self._shares), list(self._shares.values()), k=count)
        examples = [self._example(draw(task, self._random, "train")) for task in tasks]
        return sorted(examples, key=lambda example: len(example.prompt_ids))

    def nearest_answer(self, example: Example, canvas: list[int]) -> list[int]:
        """The right answer that keeps most of the canvas, where a task has many right answers.

        Without it, an open-ended task could not be trained on the sampler's own canvases: the drawn
        answer would contradict a canvas that is on its way to another right one.
        """
        answer = list(example.answer_ids)
        if example.instance.task == "list":
            self._repair_list(example.instance.prompt, canvas, answer)
        elif example.instance.task == "code":
            self._repair_code(example.instance.prompt, canvas, answer)
        return answer

    def _example(self, instance: Instance) -> Example:
        prompt = [BOS, USER, *self._encode(instance.prompt), MODEL]
        return Example(instance, prompt, [*self._encode(instance.answer), EOS])

    def _encode(self, text: str) -> list[int]:
        """Token ids, word by word: the tokenizer never joins across a space."""
        ids: list[int] = []
        for word in text.split(" "):
            if word not in self._words:
                self._words[word] = self._tokenizer(word, add_special_tokens=False)["input_ids"]
            ids += self._words[word]
        return ids

    def _repair_list(self, prompt: str, canvas: list[int], answer: list[int]) -> None:
        match = re.match(r"\w+ (\d) (\w+)(?:, not (.*))?$", prompt)
        assert match is not None
        without = (match[3] or "").split(" or ")
        allowed = [token for token, item in self._items[match[2]].items() if item not in without]
        places = range(0, 2 * int(match[1]), 2)  # items and commas alternate
        kept: dict[int, int] = {}
        for place in places:
            if canvas[place] in allowed and canvas[place] not in kept.values():
                kept[place] = canvas[place]
        free = [token for token in allowed if token not in kept.values()]
        self._random.shuffle(free)
        for place in places:
            answer[place] = kept[place] if place in kept else free.pop()

    def _repair_code(self, prompt: str, canvas: list[int], answer: list[int]) -> None:
        for index, total in enumerate(map(int, re.findall(r"== (\d+)", prompt))):
            left, right = 8 * index + 2, 8 * index + 6  # "a = 3; b = 9; " is eight tokens
            x, y = self._digits.get(canvas[left]), self._digits.get(canvas[right])
            if x is None or not 0 <= total - x <= 9:
                if y is None or not 0 <= total - y <= 9:
                    continue
                x = total - y
            answer[left], answer[right] = self._digit_ids[x], self._digit_ids[total - x]
