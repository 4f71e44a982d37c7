"""`hybrid policy`: check, show, schema and explain."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid.cli import main
from hybrid.policies.loader import load_policy, parse_policy, preset_names

BROKEN = "version: 1\ndefaults:\n  budgt: 2s\n  max_new_tokens: 0\n"


@pytest.fixture(autouse=True, scope="module")
def latency_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this module's own: the user's stays as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


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
    assert lines == [
        f"{first}:3:3: defaults.budgt: unknown key; did you mean 'budget'?",
        f"{first}:4:19: defaults.max_new_tokens: greater than or equal to 1, not 0",
        f"{second}:1:10: version: 2 is not one of 1",
    ]


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
    assert shown.model_dump() == load_policy(name).model_dump()
    assert main(["policy", "show", name, "--json"]) == 0
    assert parse_policy(capsys.readouterr().out, "shown").model_dump() == shown.model_dump()


def test_show_keeps_what_says_nothing_and_invents_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(
        "version: 1\n"
        "tasks: {chat: {}, draft: {}}\n"
        "rules: [{name: long, when: {prompt_tokens: {above: 9}}}, {name: rest, when: {}}]\n"
        "quality: {chat: {draft: {4: 0.5}, refiner: 0.9, steps_used: {4: 2.5}}}\n"
    )
    assert main(["policy", "show", str(file)]) == 0
    shown = capsys.readouterr().out
    assert parse_policy(shown, "shown").model_dump() == load_policy(file).model_dump()
    assert "null" not in shown
    assert "max_new_tokens: 1024" in shown


def test_show_refuses_what_is_no_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(BROKEN)
    assert main(["policy", "show", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 2
    assert main(["policy", "show", "balancd"]) == 2
    assert "did you mean 'balanced'?" in capsys.readouterr().err


def test_a_file_cannot_write_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "red\x1b[31m.yaml"
    file.write_text('version: 1\n"evil\\e[2J": 1\n')
    assert main(["policy", "check", str(file)]) == 2
    assert "\x1b" not in capsys.readouterr().err
    file.write_text('version: 1\ndescription: "evil\\e[2J"\n')
    assert main(["policy", "check", str(file)]) == 0
    assert main(["policy", "show", str(file)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_only_explain_imports_a_model_library(tmp_path: Path) -> None:
    code = (
        "import sys; from hybrid.cli import main\n"
        "for command in (['check', 'balanced'], ['show', 'balanced'], ['schema']):\n"
        "    assert main(['policy', *command]) == 0\n"
        "sys.exit(not {'torch', 'transformers'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE).returncode == 0


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
    tokens = ["policy", "explain", "lossless", "sort up: 3 1 2", "--budget", "5s"]
    assert main(tokens) == 0
    out = capsys.readouterr().out
    assert "within 5.00 s (task sort" in out
    assert out.count("chosen") == 1
    assert "1 2 3" not in out
    assert main([*tokens, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["budget_s"] == 5.0
    assert all(rejection["why"] for rejection in record["rejected"])
    candidates = {record["label"], *(rejection["candidate"] for rejection in record["rejected"])}
    assert candidates == {"AR alone", "4 steps + verify", "8 steps + verify", "16 steps + verify"}
    assert all(candidate in out for candidate in candidates)


def test_explain_obeys_the_requests_orders(capsys: pytest.CaptureFixture[str]) -> None:
    tokens = ["policy", "explain", "quality", "hello", "--task", "code", "--json"]
    assert main([*tokens, "--steps", "3", "--refine", "verify"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["label"], record["rejected"]) == ("3 steps + verify", [])
    assert record["rule"].startswith("task code")


def test_explain_reads_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"sort up: 3 1 2\n")))
    assert main(["policy", "explain", "fast", "-"]) == 0
    assert "(task sort" in capsys.readouterr().out


def test_explain_refuses_what_run_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "explain", "fast", "x", "--budget", "5"]) == 2
    assert "--budget: '5'" in capsys.readouterr().err
    assert main(["policy", "explain", "fast", "x", "--steps", "0"]) == 2
    assert "--steps: 0" in capsys.readouterr().err
    assert main(["policy", "explain", "fast", "x\udcff"]) == 2
    assert "write UTF-8" in capsys.readouterr().err
    assert main(["policy", "explain", "draft_only", "x", "--refine", "verify"]) == 2
    assert "--refine: 'verify' is not allowed; policy draft_only has no refiner" in (
        capsys.readouterr().err
    )
    assert main(["policy", "explain", "fast", "x", "--task", "srt"]) == 2
    assert "did you mean 'sort'?" in capsys.readouterr().err
