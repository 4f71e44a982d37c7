"""The examples in the documentation: they run, and the demo pair answers them rightly."""

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid import Hybrid
from hybrid.cli import app, main
from hybrid.embedded.tasks import recognise
from hybrid.policies.loader import parse_policy
from tests.docs.pages import PAGES, blocks, commands, page_name, write_files

# Every prompt in an example that the demo pair was trained on, and its right answer.
ANSWERS = {
    "sort up: 4 8 1 9 3": "1 3 4 8 9",
    "add 45 + 67": "112",
    "reason mod ten: 6, + 1, + 4, + 3, + 4, + 5": ("+ 1 = 7, + 4 = 1, + 3 = 4, + 4 = 8, + 5 = 3"),
    "translate to zed: the old fox sees the dog": "sa ral, mo, woz",
    "summarize: cora met hugo at the cafe on friday": (
        "who: cora; with: hugo; day: friday; place: cafe; topic: none; count: none"
    ),
}
MINUTES = {"calibrate", "compile", "demo", "doctor", "prove", "serve"}
NEEDS_FILES = {"experiment", "fit", "inspect", "quantize"}  # only tutorials show theirs
COMMANDS = sorted({(page_name(page), *words) for page in PAGES for words in commands(page)})


@pytest.fixture(scope="module")
def balanced() -> Iterator[Hybrid]:
    with Hybrid.from_policy("balanced") as hybrid:
        yield hybrid


def test_prompts_that_the_pair_knows_have_a_known_answer() -> None:
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
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


def is_runnable(page: Path, words: list[str]) -> bool:
    """Whether a page has all that a command needs, and it takes seconds."""
    has_placeholder = any(word.isupper() and len(word) > 1 for word in words)
    needs_more = MINUTES if "tutorials" in page.parts else MINUTES | NEEDS_FILES
    return not has_placeholder and words[0] not in needs_more


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page.stem == "experiment" else [])
        for page in PAGES
        if [*commands(page)]
    ],
    ids=page_name,
)
def test_commands_of_a_page_run_in_their_order(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        if is_runnable(page, words):
            monkeypatch.setattr(sys, "stdin", io.StringIO("sort up: 4 8 1 9 3\n"))
            assert main(words) == 0, (words, capfd.readouterr().err)
            assert capfd.readouterr().out, words
