"""The kind of a request, told from its words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.policies.classifier import classify

TASKS = ("chat", "translate", "summarize", "question", "list", "sort", "code", "reason")
# Written after the cues were settled, to be read by them for the first time here.
UNSEEN = [
    ("translate", "Could you put this into Spanish for me: where is the station?"),
    ("translate", "Translate 'I would like a coffee' to Italian"),
    ("translate", "I need a translation of this letter, please"),
    ("summarize", "Give me a short summary of the meeting notes below."),
    ("summarize", "Please shorten this text to a few sentences"),
    ("summarize", "Recap the following chapter"),
    ("code", "Write a bash script that renames all files in a folder"),
    ("code", "My program crashes with a segfault, what can I do? int *p = NULL;"),
    ("code", "Refactor this class so that it is easier to test"),
    ("code", "How do I join two tables in SQL?"),
    ("code", "for (int i = 0; i < n; i++) {\n  total += a[i];\n}\nwhat is total?"),
    ("reason", "A tank holds 40 litres and leaks 3 litres per hour. How long until it is empty?"),
    ("reason", "Calculate 15 percent of 80 step by step"),
    ("reason", "How many handshakes do 12 people exchange?"),
    ("reason", "Derive the formula for the area of a circle"),
    ("list", "Enumerate the planets of the solar system"),
    ("list", "Brainstorm names for a bakery"),
    ("list", "Suggest three books about the sea"),
    ("sort", "Put in order from smallest to largest: 9 2 7"),
    ("sort", "Sort the words alphabetically: pear apple fig"),
    ("question", "Who invented the telephone?"),
    ("question", "Where is Mount Kilimanjaro?"),
    ("question", "What is the meaning of the word 'ubiquitous'?"),
    ("question", "Explain the water cycle"),
    ("chat", "Good morning! I slept badly."),
    ("chat", "hi, got a minute?"),
    ("chat", "I'm sad, my cat is ill"),
]


def test_most_prompts_are_told_by_their_words() -> None:
    told = [(task, *classify(prompt, TASKS)) for task, prompt in UNSEEN]
    right = sum(task == found and confidence >= 0.5 for task, found, confidence in told)
    assert right >= 0.85 * len(UNSEEN), told


def test_only_tasks_that_the_policy_knows_are_named() -> None:
    assert classify("Write a Python function", ("chat", "code"))[0] == "code"
    assert classify("Write a Python function", ("chat",)) == (None, 0.0)
    assert classify("Write a Python function", ()) == (None, 0.0)


@pytest.mark.parametrize("prompt", ["", "purple", "zxq 啊 é̄ß", "\x00"])
def test_no_cue_is_no_task(prompt: str) -> None:
    assert classify(prompt, TASKS) == (None, 0.0)


def test_two_tasks_at_once_leave_doubt() -> None:
    both = classify("Summarize this, and translate it into French", TASKS)[1]
    assert both < classify("Translate it into French", TASKS)[1]


def test_an_instruction_after_a_long_text_is_read() -> None:
    assert classify("lorem ipsum " * 9999 + "\n\nTL;DR?", TASKS)[0] == "summarize"


@given(st.text(), st.sets(st.sampled_from(TASKS)))
def test_any_text_has_an_answer(prompt: str, tasks: set[str]) -> None:
    task, confidence = classify(prompt, tasks)
    assert (task is None and confidence == 0) or (task in tasks and 0 < confidence < 1)
