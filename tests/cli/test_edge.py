"""Wrong input to the real thing, from the shell's side: one line, the right field, exit code 2."""

import json
from pathlib import Path

import pytest

from hybrid.cli import main
from hybrid.embedded.tasks import evaluation_set


@pytest.mark.parametrize(
    ("tokens", "messages"),
    [
        (["x", "--policy", "balancd"], ["balancd", "did you mean 'balanced'?"]),
        (["x", "--policy", "no/such/file.yaml"], ["no/such/file.yaml"]),
        (["x", "--task", "translat"], ["--task: 'translat'", "did you mean 'translate'?"]),
        (["cat " * 50_000], ["prompt: "]),
        (["x", "--infill", "no blank here"], ["--infill: 'no blank here'"]),
        (["x", "--infill", "<blank:0>"], ["--infill: "]),
        (["x", "--infill", "<blank:>"], ["--infill: "]),
        (["x", "--infill", "a <blank:100000>"], ["--infill: ", "fit in"]),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    tokens: list[str], messages: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *tokens]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert len(err) < 1000
    for message in messages:
        assert message in err


def test_a_broken_policy_names_the_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "mine.yaml"
    policy.write_text("version: 1\ndefaults:\n  budgt: 2s\n")
    assert main(["run", "x", "--policy", str(policy)]) == 2
    err = capsys.readouterr().err
    assert f"{policy}:3:3: defaults.budgt" in err
    assert "did you mean 'budget'?" in err


def test_an_answer_in_json_is_repeatable(capsys: pytest.CaptureFixture[str]) -> None:
    def answer() -> str:
        tokens = ["run", evaluation_set("sort", 1)[0].prompt, "--budget", "5s", "--seed", "3"]
        assert main([*tokens, "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["seed"] == 3
        assert record["signals"]["task"] == "sort"
        assert record["signals"]["task_source"] == "recognised"
        text: str = record["text"]
        return text

    assert answer() == answer() != ""


def test_steps_and_refine_are_orders(capsys: pytest.CaptureFixture[str]) -> None:
    prompt = evaluation_set("code", 1)[0].prompt
    assert main(["run", prompt, "--steps", "2", "--refine", "none", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["plan"]["draft"]["max_denoising_steps"] == 2
    assert record["draft"]["steps"] <= 2
    assert record["refinement"] is None


def test_an_infill_keeps_what_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    tokens = ["run", "code: c + n == 11; y + z == 5", "--seed", "1", "--refine", "none"]
    assert main([*tokens, "--infill", "c =<blank:1>; n = 4; y =<blank:1>; z = 1"]) == 0
    out = capsys.readouterr().out
    assert "; n = 4; y =" in out
    assert out.endswith("; z = 1\n")
