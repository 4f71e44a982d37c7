"""Exit codes, one-line errors, and a `--help` that loads no model library."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hybrid.cli import app, exit_code, main
from hybrid.errors import BackendError, CheckpointError, HybridError, PolicyError, Problem

HYBRID = [sys.executable, "-c", "import sys; from hybrid.cli import main; sys.exit(main())"]


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize("given", [None, 0, 1, 3])
def test_a_command_chooses_its_own_exit_code(given: int | None) -> None:
    assert exit_code(lambda: given) == (given or 0)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CheckpointError("model.safetensors", "truncated"), "model.safetensors: truncated"),
        (BackendError("draft", "first\nsecond"), "draft: first second"),
        (HybridError("ends \x1b[31m red"), "ends \\x1b[31m red"),
    ],
)
def test_an_error_is_one_harmless_line(
    error: HybridError, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(raising(error)) == 2
    assert capsys.readouterr() == ("", f"error: {line}\n")


def test_a_policy_error_is_a_line_for_each_problem(capsys: pytest.CaptureFixture[str]) -> None:
    problems = [Problem("p.yaml", 3, 5, "budget", "no unit"), Problem("p.yaml", 0, 0, "", "empty")]
    assert exit_code(raising(PolicyError(problems))) == 2
    assert capsys.readouterr().err == ("error: p.yaml:3:5: budget: no unit\nerror: p.yaml: empty\n")


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "stopped\n")


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code(raising(ZeroDivisionError()))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["run"], "PROMPT requires an argument"),
        (["run", "sort", "this"], "'this' is left over; quote a prompt of several words"),
        (["run", "x", "--stepz", "3"], "Unknown option: --stepz. Did you mean --steps?"),
        (["run", "x", "--steps", "many"], "--steps: unable to convert"),
        (["run", "x", "--steps", "0"], "--steps: 0 is not allowed; a whole number from 1 to 1024"),
        (["run", "x", "--steps", "-3"], "--steps: -3 is not allowed"),
        (["run", "x", "--budget", "500"], "--budget: '500' is not allowed; write a duration"),
        (["run", "x", "--budget", "0ms"], "--budget: '0ms' is not allowed"),
        (["run", "x", "--refine", "verfy"], "did you mean 'verify'?"),
        (["run", "x", "--seed", "-1"], "--seed: -1 is not allowed"),
        (["run", "x", "--max-new-tokens", "0"], "--max-new-tokens: 0 is not allowed"),
        (["run", ""], "prompt: '' is not allowed; write at least one word"),
        (["run", "\udcff"], r"prompt: b'\xff' is not allowed; write UTF-8; byte 0 is not"),
        (["run", "x", "--infill", "\udcff"], r"--infill: b'\xff' is not allowed"),
        (["demo", "--svg", "/no/such/folder/a.svg"], "--svg: '/no/such/folder/a.svg'"),
        (["demo", "--svg", "/"], "--svg: '/' is not allowed; a file in a folder that exists"),
    ],
)
def test_wrong_arguments_name_the_option(
    tokens: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tokens) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_the_version_and_the_exit_codes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("hybrid 0.")
    assert "130 stopped by Ctrl-C" in out
    for command in ("run", "demo", "policy", "inspect", "doctor"):
        assert f" {command} " in out


def test_commands_are_import_strings() -> None:
    names = ("run", "demo", "policy", "inspect", "doctor")
    paths = {name: getattr(app._commands[name], "import_path", None) for name in names}
    assert paths == {
        "run": "hybrid.cli.run:run",
        "demo": "hybrid.cli.demo:demo",
        "policy": "hybrid.cli.policy:app",
        "inspect": "hybrid.cli.inspect:inspect",
        "doctor": "hybrid.cli.doctor:doctor",
    }


@pytest.mark.parametrize("tokens", [["--help"], ["run", "--help"], ["demo", "--help"]])
def test_help_imports_no_model_library(tokens: list[str]) -> None:
    heavy = "{'torch', 'transformers', 'triton', 'pydantic', 'numpy'}"
    code = f"import sys; from hybrid.cli import main; main({tokens})"
    code += f"; print(sorted({heavy} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_a_closed_pipe_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*HYBRID, "--help"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_output_that_cannot_be_written_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*HYBRID, "--version"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "error: standard output: No space left on device\n"


def test_completion_edits_no_start_up_file(tmp_path: Path) -> None:
    (tmp_path / ".bashrc").write_text("# mine\n")
    pytest.importorskip("hybrid.cli.policy")
    done = subprocess.run(
        [*HYBRID, "--install-completion", "--shell", "bash"],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".bashrc").read_text() == "# mine\n"
    assert list(tmp_path.rglob("bash-completion/completions/hybrid"))
