"""`hybrid policy`: check, show, schema and explain."""

import json
from pathlib import Path

import pytest

from hybrid.cli import main
from hybrid.policies.loader import load_policy, parse_policy, preset_names

BROKEN = "version: 1\ndefaults:\n  budgt: 2s\n  max_new_tokens: 0\n"


def test_check_says_ok_for_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "check", *preset_names()]) == 0
    out, err = capsys.readouterr()
    assert out == "".join(f"{name}: OK\n" for name in preset_names())
    assert err == ""


def test_check_names_every_problem_of_every_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(BROKEN)
    second.write_text("version: 2\n")
    assert main(["policy", "check", str(first), "balanced", str(second)]) == 2
    out, err = capsys.readouterr()
    assert out == "balanced: OK\n"
    lines = err.splitlines()
    assert len(lines) == 3
    assert f"{first}:3:3: defaults.budgt: unknown key; did you mean 'budget'?" in lines[0]
    assert f"{first}:4:19: defaults.max_new_tokens" in lines[1]
    assert f"{second}:1:10: version" in lines[2]


def test_check_tells_how_it_understood_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("version: 1\ndefaults: {draft: {num_diffusion_steps: 8}}\n")
    assert main(["policy", "check", str(file)]) == 0
    assert "note: defaults.draft.num_diffusion_steps: read as max_denoising_steps" in (
        capsys.readouterr().out
    )


def test_check_without_a_file_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "check"]) == 2
    assert "FILE" in capsys.readouterr().err


@pytest.mark.parametrize("name", preset_names())
def test_what_show_prints_means_the_same(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "show", name]) == 0
    shown = parse_policy(capsys.readouterr().out, "shown")
    assert shown == shown.model_validate(shown)
    assert shown.model_dump(exclude={"tasks": {"__all__": {"description"}}}) == load_policy(
        name
    ).model_dump(exclude={"tasks": {"__all__": {"description"}}})


def test_show_keeps_a_model_that_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("version: 1\nmodels: {refiner: null}\n")
    assert main(["policy", "show", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"]["refiner"] is None


def test_schema_is_json_schema_with_descriptions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["additionalProperties"] is False
    assert "YAML" not in schema["properties"]["tasks"]["description"]
    assert schema["$defs"]["DefaultsSection"]["properties"]["budget"]["description"]


def test_explain_shows_all_candidates_and_answers_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokens = ["policy", "explain", "sort up: 3 1 2", "--policy", "quality", "--budget", "5s"]
    assert main(tokens) == 0
    out = capsys.readouterr().out
    assert "within 5.00 s (task sort)" in out
    assert out.count("chosen") == 1
    assert "1 2 3" not in out
    assert main([*tokens, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["budget_s"] == 5.0
    assert all(rejection["why"] for rejection in record["rejected"])
    assert record["label"] in out


def test_explain_refuses_what_run_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "explain", "x", "--budget", "5"]) == 2
    assert "--budget: '5'" in capsys.readouterr().err
    assert main(["policy", "explain", "x", "--task", "srt"]) == 2
    assert "did you mean 'sort'?" in capsys.readouterr().err
