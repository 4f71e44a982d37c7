"""The embedded pair's tasks: generators, checkers, and how a prompt finds its task."""

import json
import random

import pytest

from hybrid.embedded import EVALUATION
from hybrid.embedded.tasks import (
    MEASURED,
    TASKS,
    Instance,
    check,
    draw,
    evaluation_set,
    experiment_set,
    is_held_out,
    length_hint,
    note,
    number_words,
    phrase,
    recognise,
)
from training.tokenizer import load


@pytest.mark.parametrize("task", TASKS)
def test_every_drawn_answer_is_right_recognised_and_fits_a_canvas(task: str) -> None:
    rng, tokenizer = random.Random(task), load()
    for _ in range(300):
        instance = draw(task, rng, "train")
        assert check(instance, instance.answer)
        assert not check(instance, instance.answer + " 7")
        assert not check(instance, "")
        assert recognise(instance.prompt) == task
        assert len(tokenizer(instance.answer)["input_ids"]) < 32
        assert len(tokenizer(instance.prompt)["input_ids"]) < 80


@pytest.mark.parametrize("task", TASKS)
def test_training_and_evaluation_share_no_prompt(task: str) -> None:
    measured = evaluation_set(task, 100)
    assert measured == evaluation_set(task, 100)
    assert len({instance.prompt for instance in measured}) == 100
    assert all(is_held_out(instance.prompt) for instance in measured)
    rng = random.Random(1)
    assert not any(is_held_out(draw(task, rng, "train").prompt) for _ in range(200))


@pytest.mark.parametrize(
    ("prompt", "text", "is_right"),
    [
        ("list 3 fruits, not apple", "banana, plum, date", True),
        ("list 3 fruits, not apple", "date, banana, plum", True),
        ("list 3 fruits, not apple", "banana, plum, apple", False),
        ("list 3 fruits, not apple", "banana, plum", False),
        ("list 3 fruits, not apple", "banana, plum, plum", False),
        ("list 3 fruits, not apple", "banana, plum, fox", False),
        ("code: x + y == 7; a + b == 9", "x = 3; y = 4; a = 0; b = 9", True),
        ("code: x + y == 7; a + b == 9", "x = 7; y = 0; a = 4; b = 5", True),
        ("code: x + y == 7; a + b == 9", "x = 3; y = 5; a = 0; b = 9", False),
        ("code: x + y == 7; a + b == 9", "y = 3; x = 4; a = 0; b = 9", False),
        ("code: x + y == 7; a + b == 9", "x = 3; y = 4", False),
        ("code: x + y == 7; a + b == 9", "x = 3; y = 4; a = 0; b = 9; c = 1", False),
    ],
)
def test_open_ended_tasks_take_every_right_answer_and_no_other(
    prompt: str, text: str, is_right: bool
) -> None:
    task = recognise(prompt)
    assert task is not None
    assert check(Instance(task, prompt, "", 0), text) is is_right


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety nine"),
        (100, "one hundred"),
        (345, "three hundred forty five"),
        (1000, "one thousand"),
        (120_017, "one hundred twenty thousand seventeen"),
        (
            999_999,
            "nine hundred ninety nine thousand nine hundred ninety nine",
        ),
    ],
)
def test_numbers_in_words(number: int, words: str) -> None:
    assert number_words(number) == words


@pytest.mark.parametrize(
    ("task", "prompt", "phrased"),
    [
        ("add", "345 + 678", "add 345 + 678"),
        ("numbers", "345", "in words: 345"),
        ("numbers", "forty two", "in digits: forty two"),
        ("sort", " 3 1 2 ", "sort up: 3 1 2"),
        ("list", "4 fruits", "list 4 fruits"),
        ("sort", "sort down: 3 1 2", "sort down: 3 1 2"),
        ("chat", "hello", "hello"),
    ],
)
def test_a_task_by_name_gets_its_trained_words(task: str, prompt: str, phrased: str) -> None:
    assert phrase(task, prompt) == phrased


@pytest.mark.parametrize("prompt", ["hello", "", "tell me a story", "list the primes", "add up"])
def test_other_prompts_are_no_task(prompt: str) -> None:
    assert recognise(prompt) is None


@pytest.mark.parametrize("task", TASKS)
def test_experiments_ask_what_the_quality_tables_were_not_measured_on(task: str) -> None:
    known = {instance.prompt for instance in evaluation_set(task, MEASURED)}
    asked = experiment_set(task, 100)
    assert asked == experiment_set(task, 100)
    assert len({instance.prompt for instance in asked} - known) == 100
    assert json.loads(EVALUATION.read_text())["items"] == MEASURED


@pytest.mark.parametrize(
    ("prompt", "hint"),
    [
        ("list 5 metals", 5),
        ("add 12 + 30", 42),
        ("no number", 0),
        ("2" * 5000, 10**9),
        ("x" * 5000 + " 7", 0),
        ("\u0663 metals", 0),
    ],
)
def test_the_length_hint_is_the_sum_of_the_numbers_named(prompt: str, hint: int) -> None:
    assert length_hint(prompt) == hint


def test_a_prompt_outside_the_tasks_has_a_note() -> None:
    assert note("list 5 metals") == ""
    assert "outside" in note("hello")
