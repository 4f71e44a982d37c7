"""The examples in the documentation: they run, and the demo pair answers them rightly."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid import Hybrid
from hybrid.cli import app, main
from hybrid.embedded.tasks import recognise
from hybrid.policies.loader import parse_policy
from tests.docs.pages import PAGES, ROOT, blocks, commands, page_name

# Every prompt in an example that the demo pair was trained on, and its right answer.
ANSWERS = {
    "sort up: 4 8 1 9 3": "1 3 4 8 9",
    "translate to zed: the old fox sees the dog": "sa ral, mo, woz",
    "summarize: cora met hugo at the cafe on friday": (
        "who: cora; with: hugo; day: friday; place: cafe; topic: none; count: none"
    ),
}
# What these commands need is not here: a model folder, a recorded experiment, minutes of time.
NEEDS_MORE = {"calibrate", "compile", "demo", "doctor", "experiment", "fit", "inspect", "quantize"}
COMMANDS = sorted({(page_name(page), *words) for page in PAGES for words in commands(page)})


@pytest.fixture(scope="module")
def balanced() -> Iterator[Hybrid]:
    with Hybrid.from_policy("balanced") as hybrid:
        yield hybrid


def test_prompts_that_the_pair_knows_have_a_known_answer() -> None:
    text = "\n".join(page.read_text("utf-8") for page in PAGES if "embedded" not in page.parts)
    quoted = set(re.findall(r'"([^"\n]{8,})"', text))
    assert {prompt for prompt in quoted if recognise(prompt)} == ANSWERS.keys()


@pytest.mark.parametrize("prompt", ANSWERS)
def test_the_pair_answers_examples_rightly(balanced: Hybrid, prompt: str) -> None:
    drafts = [
        balanced.generate(
            prompt, refine="none", max_denoising_steps=steps, seed=steps, budget="30s"
        )
        for steps in (1, 8, 20)
    ]
    alone = balanced.generate(prompt, refine="generate", budget="30s")
    assert {result.text for result in (*drafts, alone)} == {ANSWERS[prompt]}


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=page_name)
def test_python_examples_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {"__name__": "example"}
    for number, block in enumerate(blocks(page, "python"), 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    capsys.readouterr()


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "yaml")], ids=page_name)
def test_policies_in_examples_are_valid(page: Path) -> None:
    for block in blocks(page, "yaml"):
        if re.search("^version: 1", block) and not re.search("^policies:", block, re.M):
            parse_policy(block, page_name(page))


def test_the_documentation_shows_commands() -> None:
    assert {"run", "policy", "experiment", "fit"} <= {words[1] for words in COMMANDS}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_in_examples_exist_with_their_options(words: tuple[str, ...]) -> None:
    app.parse_args([word for word in words[1:] if word != "-"], exit_on_error=False)


RUNNABLE = [
    words
    for words in COMMANDS
    if words[1] not in NEEDS_MORE and not any(w.isupper() and len(w) > 1 for w in words)
]


@pytest.mark.parametrize("words", RUNNABLE, ids=" ".join)
def test_commands_in_examples_run(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main([word for word in words[1:] if word != "-"] or ["--help"]) == 0
    assert capfd.readouterr().out
