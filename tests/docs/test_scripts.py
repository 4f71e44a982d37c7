"""The programs in examples/ do what they say."""

import asyncio
import io
import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT

EXAMPLES = ROOT / "examples"
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call with an example's name, arguments and standard input: what it prints."""

    def run(name: str, *arguments: str, given: str = "") -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(given))
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_run_here() -> None:
    text = Path(__file__).read_text("utf-8")
    assert [file.stem for file in EXAMPLES.glob("*.py") if f'"{file.stem}' not in text] == []


def test_chat_answers_each_line(run: Run) -> None:
    given = "sort up: 4 8 1 9 3\nadd 45 + 67\n"
    assert run("chat", given=given) == "1 3 4 8 9\n112\n"
    assert run("chat", "balanced", "--history", given=given).startswith("1 3 4 8 9\n")


def test_a_batch_keeps_its_order(run: Run, tmp_path: Path) -> None:
    answers = [line.split("  [")[0].split(" -> ")[1] for line in run("batch").splitlines()]
    assert answers == ["1 3 4 8 9", "9 8 4 3 1", "112", "three hundred forty five"]
    file = tmp_path / "prompts.txt"
    file.write_text("add 45 + 67\n")
    assert run("batch", str(file)).startswith("add 45 + 67 -> 112  [")


def test_an_infill_keeps_the_rest(run: Run) -> None:
    assert run("infill").splitlines()[1] == "+ 1 = 7, + 4 = 1, + 3 = 4, + 4 = 8, + 5 = 3"


def test_checks_say_what_failed(run: Run) -> None:
    lines = run("checks").splitlines()
    assert lines[:3] == ["1 3 4 8 9", "  regex '^[0-9 ]+$': passed", "  no_number_twice: passed"]
    assert lines[-1] == "  contains '7': '7' is missing"


def test_signals_and_rules_choose_the_plan(run: Run) -> None:
    trial, gold, unknown = run("rules").splitlines()
    assert trial == "trial: 1 3 4 8 9  [4 steps]"
    assert re.fullmatch(r"gold: 112  \[\d+ steps? \+ verify\]", gold)
    assert unknown.startswith("unknown: three hundred forty five  [")


def test_records_become_a_table(run: Run) -> None:
    rows = {line[:30].strip(): line[30:].split() for line in run("records").splitlines()}
    assert rows["refiner"][:2] == ["500", "0.994"]


def test_the_service_answers_and_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    serve: Any = runpy.run_path(str(EXAMPLES / "service.py"))["serve"]

    async def converse() -> list[dict[str, Any]]:
        service = asyncio.create_task(serve(0))
        while not (found := re.search(r"port (\d+)", capsys.readouterr().out)):
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(found[1]))
        writer.write(b'{"prompt": "add 45 + 67", "budget": "20s"}\n{"budget": "1s"}\n')
        answers = [json.loads(await reader.readline()) for _ in range(2)]
        writer.close()
        service.cancel()
        await asyncio.gather(service, return_exceptions=True)
        return answers

    right, wrong = asyncio.run(asyncio.wait_for(converse(), 60))
    assert right["text"] == "112"
    assert wrong == {"error": "KeyError: 'prompt'"}
