"""`hybrid run`: the answer on stdout, how it came about on stderr, and nothing by halves."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid.cli import exit_code
from hybrid.cli.run import answer, option_name, read_prompt
from hybrid.errors import BackendError, RequestError
from hybrid.types import Edit, Request

CONFTEST = Path(__file__).with_name("conftest.py")
REQUEST = Request("translate : the dog", budget_s=0.3)
Scripted = Callable[..., Any]


def in_terminal(*pieces: str, send: int | None = None, **options: object) -> tuple[int, str]:
    """Exit code and output of `answer` in a terminal; `send` is a signal for mid-draft."""
    code = f"""
import runpy, signal, sys
from hybrid.cli import exit_code
from hybrid.cli.run import answer
from hybrid.types import Request
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
ScriptedHybrid = runpy.run_path({str(CONFTEST)!r})["ScriptedHybrid"]
hybrid = ScriptedHybrid([{list(pieces)!r}], **{options!r})
sys.exit(exit_code(lambda: answer(hybrid, Request("x", budget_s=0.3))))
"""
    ours, theirs = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**env, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
    )
    os.close(theirs)
    output = b""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the terminal is closed
                break
            output += chunk
        if send is not None and b"step" in output:
            process.send_signal(send)
            send = None
    os.close(ours)
    return process.wait(timeout=10), output.decode()


def test_stdout_is_the_answer_and_stderr_its_record(
    scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    hybrid = scripted("ka", " bel", notes=("outside the tasks",))
    answer(hybrid, REQUEST)
    out, err = capsys.readouterr()
    assert out == "ka bel\n"
    lines = [line.split(maxsplit=1) for line in err.splitlines()]
    assert [name for name, _ in lines] == [
        "decision",
        "draft",
        "verdict",
        "refinement",
        "time",
        "answer",
        "note",
    ]
    assert "\x1b" not in err
    assert hybrid.requests == [REQUEST]


def test_a_program_gets_the_exact_text(
    scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(scripted("a\x1b[31m", "\tb\r\n"), REQUEST)
    assert capsys.readouterr().out == "a\x1b[31m\tb\r\n\n"


def test_json_is_one_object_and_nothing_else(
    scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(scripted("é\x9b", edits=(Edit(0, 1, "é", "è"),)), REQUEST, as_json=True)
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, "")
    assert out.isascii()
    record = json.loads(out)
    assert record["text"] == "è\x9b"
    edit = {"start": 0, "end": 1, "old": "é", "new": "è", "why": ""}
    assert record["refinement"]["edits"] == [edit]


def test_a_failing_backend_prints_no_answer(
    scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    hybrid = scripted("ka", error=BackendError("draft", "out of memory"))
    assert exit_code(lambda: answer(hybrid, REQUEST)) == 2
    assert capsys.readouterr() == ("", "error: draft: out of memory\n")


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("max_denoising_steps", "--steps"),
        ("max_new_tokens", "--max-new-tokens"),
        ("infill", "--infill"),
        ("task", "--task"),
        ("prompt", "prompt"),
    ],
)
def test_fields_are_named_as_they_are_typed(field: str, name: str) -> None:
    assert option_name(field) == name


@pytest.mark.parametrize(
    ("data", "prompt"),
    [
        (b"sort up : 3 1\n", "sort up : 3 1"),
        (b"two\nlines\r\n", "two\nlines"),
        ("größer\n\n".encode(), "größer\n"),
    ],
)
def test_a_dash_reads_standard_input(data: bytes, prompt: str) -> None:
    assert read_prompt("-", io.TextIOWrapper(io.BytesIO(data))) == prompt


@pytest.mark.parametrize(
    ("data", "offset"),
    [(b"\xff", 0), (b"ab\xe9", 2), ("ä".encode("latin-1"), 0), (b"x\xed\xa0", 1)],
)
def test_standard_input_must_be_utf8(data: bytes, offset: int) -> None:
    with pytest.raises(RequestError, match=f"prompt: .* write UTF-8; byte {offset} is not"):
        read_prompt("-", io.TextIOWrapper(io.BytesIO(data)))


def test_closed_standard_input_is_said() -> None:
    with pytest.raises(RequestError, match="standard input is closed"):
        read_prompt("-", None)


def test_a_terminal_sees_it_crystallise_then_the_answer() -> None:
    code, output = in_terminal("ka", " bel", " \x1b[2J")
    assert code == 0
    assert "step " in output and "entropy" in output
    assert "\x1b[2J" not in output and "\\x1b[2J" in output
    assert output.index("\x1b[?25l") < output.rindex("\x1b[?25h")  # hidden, then shown again
    after = output[output.rindex("\x1b[?25h") :]
    assert "ka bel" in after and "decision" in after


def test_ctrl_c_in_mid_draft_stops_cleanly() -> None:
    code, output = in_terminal(
        *[f" word{i}" for i in range(9)], send=signal.SIGINT, step_s=0.2, steps=60
    )
    assert code == 130
    assert "Traceback" not in output
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")
    after = output[output.rindex("\x1b[?25h") :]
    assert "word" not in after and "decision" not in after
    assert after.rstrip().endswith("stopped")
