"""Ten small tasks with exact checkers: what the embedded pair is trained on and measured by.

A prompt's checksum decides for ever whether it may be trained on or only measured with, so the two
sets share no prompt, whatever seeds are drawn.
"""

import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hybrid.embedded.lexicon import (
    ADJECTIVES,
    CATEGORIES,
    DAYS,
    LETTERS,
    MONTHS,
    NAMES,
    NOUNS,
    NUMBER_WORDS,
    PLACES,
    TENS,
    TOPICS,
    VARIABLES,
    VERBS,
)

Split = Literal["train", "evaluation"]


@dataclass(frozen=True, slots=True)
class Instance:
    """A prompt, one right answer, and the instance's size (hops, items, digits...)."""

    task: str
    prompt: str
    answer: str
    size: int


@dataclass(frozen=True, slots=True)
class Task:
    """A generator of prompts, their checker, and the words by which a prompt is recognised.

    `open_ended` tasks have many right answers. `pattern` matches every prompt of the task.
    """

    name: str
    generate: Callable[[random.Random], tuple[str, str, int]]
    pattern: re.Pattern[str]
    check: Callable[[str, str, str], bool]
    open_ended: bool = False


def _same(prompt: str, answer: str, text: str) -> bool:
    return text.split() == answer.split()


def number_words(number: int) -> str:
    """A number from 0 to 999,999 in words: 'three hundred forty five'."""
    if number < 20:
        return NUMBER_WORDS[number]
    if number < 100:
        rest = number % 10
        return TENS[number // 10 - 2] + (f" {NUMBER_WORDS[rest]}" if rest else "")
    unit, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = number % unit
    return f"{number_words(number // unit)} {name}" + (f" {number_words(rest)}" if rest else "")


def _translate(rng: random.Random) -> tuple[str, str, int]:
    def noun_phrase() -> tuple[str, str]:
        adjectives = rng.sample(list(ADJECTIVES), rng.choice((0, 1, 1, 2)))
        noun = rng.choice(list(NOUNS))
        english = " ".join(["the", *adjectives, noun])
        return english, " ".join([NOUNS[noun], *(ADJECTIVES[a] for a in reversed(adjectives))])

    def clause() -> tuple[str, str]:
        (subject, zed_subject), (object_, zed_object) = noun_phrase(), noun_phrase()
        verb = rng.choice(list(VERBS))
        return f"{subject} {verb} {object_}", f"{zed_subject}, {zed_object}, {VERBS[verb]}"

    clauses = [clause() for _ in range(rng.choice((1, 2, 2)))]
    english = " and ".join(c[0] for c in clauses)
    prompt = rng.choice((f"translate to zed: {english}", f"say in zed: {english}"))
    zed = "; ".join(c[1] for c in clauses)
    return prompt, zed, len(zed.split())


def _numbers(rng: random.Random) -> tuple[str, str, int]:
    digits = rng.randrange(1, 7)
    number = rng.randrange(10 ** (digits - 1) - (digits == 1), 10**digits)
    if rng.random() < 0.5:
        return f"in digits: {number_words(number)}", str(number), digits
    prompt = rng.choice((f"in words: {number}", f"write {number} in words"))
    return prompt, number_words(number), digits


def _summarize(rng: random.Random) -> tuple[str, str, int]:
    who, other = rng.sample(NAMES, 2)
    fields: dict[str, tuple[str, str]] = {
        "with": (f"met {other}", other),
        "day": (f"on {(day := rng.choice(DAYS))}", day),
        "place": (f"at the {(place := rng.choice(PLACES))}", place),
        "topic": (f"about {(topic := rng.choice(TOPICS))}", topic),
        "count": (f"with {(count := str(rng.randrange(2, 10)))} friends", count),
    }
    kept = [name for name in fields if rng.random() < 0.85]
    rng.shuffle(kept)
    story = " ".join([who, *(fields[name][0] for name in kept)])
    prompt = rng.choice((f"summarize: {story}", f"fields of: {story}"))
    values = [f"{name}: {fields[name][1] if name in kept else 'none'}" for name in fields]
    return prompt, "; ".join([f"who: {who}", *values]), len(kept)


def _fill(rng: random.Random) -> tuple[str, str, int]:
    length = rng.randrange(5, 9)
    if rng.random() < 0.5:
        step = rng.choice((1, 2, 5, 10, -1))
        low, high = max(0, -step * (length - 1)), min(99, 99 - step * (length - 1))
        first = rng.randint(low, high)
        items = [str(first + step * i) for i in range(length)]
    else:
        wheel = rng.choice((DAYS, MONTHS, MONTHS, LETTERS, LETTERS, LETTERS))
        step = rng.choice((1, -1))
        first = rng.randrange(len(wheel))
        items = [wheel[(first + step * i) % len(wheel)] for i in range(length)]
    blank = rng.randrange(1, length - 3)
    at = rng.randrange(2, length - blank)
    given = " ".join([*items[:at], "_", *items[at + blank :]])
    prompt = rng.choice((f"fill: {given}", f"what is missing: {given}"))
    return prompt, " ".join(items[at : at + blank]), blank


def _question(rng: random.Random) -> tuple[str, str, int]:
    people = rng.sample(NAMES, 6)
    hops = rng.randrange(1, 6)
    links = [f"{a} knows {b}" for a, b in zip(people, people[1:] + people[:1], strict=True)]
    first = rng.randrange(6)
    rng.shuffle(links)
    start = people[first]
    ask = rng.choice((f"start at {start}, {hops} hops", f"follow {start} {hops} times"))
    path = [people[(first + i) % 6] for i in range(hops + 1)]
    return f"question: {'; '.join(links)}. {ask}", " ".join(path), hops


def _list(rng: random.Random) -> tuple[str, str, int]:
    category = rng.choice(list(CATEGORIES))
    count = rng.randrange(3, 6)
    items = rng.sample(CATEGORIES[category], count + 3)
    without = items[count : count + rng.choice((0, 1, 2, 2, 3, 3))]
    rng.shuffle(without)
    verb = rng.choice(("list", "name"))
    prompt = f"{verb} {count} {category}" + (f", not {' or '.join(without)}" if without else "")
    return prompt, ", ".join(items[:count]), count


def _check_list(prompt: str, answer: str, text: str) -> bool:
    match = re.match(r"\w+ (\d) (\w+)(?:, not (.*))?$", prompt)
    assert match
    items = [item.strip() for item in text.split(",")]
    allowed = set(CATEGORIES[match[2]]) - set((match[3] or "").split(" or "))
    return len(items) == len(set(items)) == int(match[1]) and allowed.issuperset(items)


def _sort(rng: random.Random) -> tuple[str, str, int]:
    values = [rng.randrange(10) for _ in range(rng.randrange(5, 9))]
    down = rng.random() < 0.5
    order = "down" if down else "up"
    given = " ".join(map(str, values))
    prompt = rng.choice((f"sort {order}: {given}", f"put in order, {order}: {given}"))
    return prompt, " ".join(map(str, sorted(values, reverse=down))), len(values)


def _code(rng: random.Random) -> tuple[str, str, int]:
    a, b, c, d = rng.sample(VARIABLES, 4)
    sums = rng.randrange(2, 17), rng.randrange(2, 17)
    left = [rng.randint(max(0, total - 9), min(9, total)) for total in sums]
    equations = f"{a} + {b} == {sums[0]}; {c} + {d} == {sums[1]}"
    values = (
        f"{a} = {left[0]}; {b} = {sums[0] - left[0]}; {c} = {left[1]}; {d} = {sums[1] - left[1]}"
    )
    return rng.choice((f"code: {equations}", f"solve {equations}")), values, 4


def _check_code(prompt: str, answer: str, text: str) -> bool:
    values = dict(re.findall(r"([a-z]) = (\d)(?:; |$)", text.strip()))
    names = re.findall(r"([a-z]) = ", text)
    equations = re.findall(r"([a-z]) \+ ([a-z]) == (\d+)", prompt)
    return names == [name for a, b, _ in equations for name in (a, b)] == list(values) and all(
        int(values[a]) + int(values[b]) == int(total) for a, b, total in equations
    )


def _reason(rng: random.Random) -> tuple[str, str, int]:
    value = rng.randrange(10)
    start, operations, results = value, [], []
    for _ in range(rng.randrange(4, 7)):
        amount = rng.randrange(1, 6)
        value = (value + amount) % 10
        operations.append(f"+ {amount}")
        results.append(f"+ {amount} = {value}")
    prompt = rng.choice(("reason mod ten", "step by step, mod ten"))
    return f"{prompt}: {start}, {', '.join(operations)}", ", ".join(results), len(results)


def _add(rng: random.Random) -> tuple[str, str, int]:
    a, b = rng.randrange(10, 100), rng.randrange(10, 100)
    prompt = rng.choice((f"add {a} + {b}", f"what is {a} + {b}?"))
    return prompt, str(a + b), len(str(a + b))


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE)


TASKS = {
    task.name: task
    for task in (
        Task("translate", _translate, _pattern(r"(translate to|say in) zed:"), _same),
        Task(
            "numbers",
            _numbers,
            _pattern(r"in (words|digits):|write \d+ in words$"),
            _same,
        ),
        Task("summarize", _summarize, _pattern(r"(summarize|fields of):"), _same),
        Task("fill", _fill, _pattern(r"(fill|what is missing):.*\b_\b"), _same),
        Task("question", _question, _pattern(r"question:.*\bknows\b"), _same),
        Task(
            "list",
            _list,
            _pattern(rf"(list|name) \d ({'|'.join(CATEGORIES)})\b"),
            _check_list,
            open_ended=True,
        ),
        Task("sort", _sort, _pattern(r"(sort|put in order,) (up|down):"), _same),
        Task(
            "code",
            _code,
            _pattern(r"(code:|solve) [a-z] \+ [a-z] == \d"),
            _check_code,
            open_ended=True,
        ),
        Task("reason", _reason, _pattern(r"(reason|step by step,) mod ten:"), _same),
        Task("add", _add, _pattern(r"(add|what is) \d+ \+ \d+"), _same),
    )
}


_NUMBER, _READ_CHARACTERS, _LARGEST_HINT = re.compile(r"\d{1,9}", re.ASCII), 4096, 10**9
MEASURED = 300  # held-out instances of each task that the shipped quality tables are of
_PHRASES = {
    "translate": "translate to zed:",
    "summarize": "summarize:",
    "fill": "fill:",
    "question": "question:",
    "list": "list",
    "sort": "sort up:",
    "code": "code:",
    "reason": "reason mod ten:",
    "add": "add",
}


def is_held_out(prompt: str) -> bool:
    """Whether a prompt may only be measured with: one in sixteen, by its checksum."""
    return zlib.crc32(prompt.encode()) % 16 == 0


def draw(task: str, rng: random.Random, split: Split) -> Instance:
    """A random instance of a task in one split."""
    while True:
        prompt, answer, size = TASKS[task].generate(rng)
        if is_held_out(prompt) == (split == "evaluation"):
            return Instance(task, prompt, answer, size)


def evaluation_set(task: str, count: int) -> list[Instance]:
    """The same `count` held-out instances of a task every time, no prompt twice."""
    rng = random.Random(f"evaluation/{task}")
    instances: dict[str, Instance] = {}
    while len(instances) < count:
        instance = draw(task, rng, "evaluation")
        instances.setdefault(instance.prompt, instance)
    return list(instances.values())


def experiment_set(task: str, count: int) -> list[Instance]:
    """The same `count` held-out instances every time, none of which the shipped quality tables
    were measured on.
    """
    return evaluation_set(task, MEASURED + count)[MEASURED:]


def check(instance: Instance, text: str) -> bool:
    """Whether `text` is a right answer; spacing does not matter."""
    return TASKS[instance.task].check(instance.prompt, instance.answer, text)


def phrase(task: str, prompt: str) -> str:
    """A prompt for a task in words that were trained: `add` and '3 + 4' make 'add 3 + 4'."""
    if task not in TASKS or recognise(prompt) is not None:
        return prompt
    text = prompt.strip()
    if task == "numbers":
        return f"in {'words' if text.isdigit() else 'digits'}: {text}"
    return f"{_PHRASES[task]} {text}"


def recognise(prompt: str) -> str | None:
    """The trained task that a prompt asks for, or None if it is outside all of them."""
    text = prompt.strip()
    return next((name for name, task in TASKS.items() if task.pattern.match(text)), None)


def length_hint(prompt: str) -> int:
    """The sum of the whole numbers in a prompt, as far as it is read: of "list 5 metals", 5.

    What it counts tells how long an answer to it is better than its length does.
    """
    numbers = _NUMBER.findall(prompt, 0, _READ_CHARACTERS)
    return min(_LARGEST_HINT, sum(map(int, numbers)))


def note(prompt: str) -> str:
    """What a reader of the answer must know, empty where there is nothing."""
    if recognise(prompt) is not None:
        return ""
    return "outside the embedded model's tasks: do not expect a meaningful answer"
