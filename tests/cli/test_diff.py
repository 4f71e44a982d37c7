"""`hybrid policy diff`: what a change of policy would do to given requests."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid.cli import main


@pytest.fixture(autouse=True, scope="module")
def latency_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this module's own: the user's stays as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def requests(tmp_path: Path) -> str:
    file = tmp_path / "requests.jsonl"
    file.write_text(
        '{"prompt": "sort up: 3 1 2", "max_denoising_steps": 4, "refine": "none", "budget": "1s"}\n'
        "\n"
        '{"messages": [{"role": "user", "content": "add 3 + 4"}], "budget": "10s"}\n'
        '{"prompt": "add 3 + 4", "refine": "verify"}\n'
    )
    return str(file)


def test_only_what_is_decided_differently_is_shown(
    requests: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = ["policy", "diff", "lossless", "draft_only", "--requests", requests]
    assert main(tokens) == 0
    out = capsys.readouterr().out
    assert "2 of 3 requests are decided differently" in out
    assert main([*tokens, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["requests"] == 3
    second, third = record["different"]
    assert (second["line"], second["prompt"]) == (2, "add 3 + 4")
    assert second["second"]["label"] == "16 steps"
    assert second["second"]["predicted"]["latency_p50_s"] > 0
    assert third["line"] == 3
    assert "draft_only has no refiner" in third["second"]["refused"]


def test_a_policy_does_not_differ_from_itself(
    requests: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["policy", "diff", "fast", "fast", "--requests", requests]) == 0
    assert capsys.readouterr().out == "0 of 3 requests are decided differently\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line: '{' is not allowed; JSON ("),
        ("[1]", "an object with a prompt or with messages"),
        ('{"promt": "x"}', "an object with a prompt or with messages"),
        ('{"prompt": "x", "messages": []}', "an object with a prompt or with messages"),
        ('{"prompt": 3}', "prompt: 3 is not allowed; a text, or a list of messages"),
        ('{"prompt": ""}', "prompt: '' is not allowed"),
        ('{"prompt": "x", "budgt": "1s"}', "did you mean 'budget'?"),
        ('{"prompt": "x", "budget": 3}', "budget: 3 is not allowed"),
        ("[" * 9999, "JSON ("),
    ],
)
def test_a_broken_request_is_told_with_its_line(
    line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(f'{{"prompt": "add 3 + 4"}}\n{line}\n')
    assert main(["policy", "diff", "fast", "fast", "--requests", str(file)]) == 2
    err = capsys.readouterr().err
    assert f"{file}:2: " in err
    assert message in err


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe", None])
def test_a_file_without_requests_is_refused(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "requests.jsonl"
    if content is not None:
        file.write_bytes(content)
    assert main(["policy", "diff", "fast", "fast", "--requests", str(file)]) == 2
    assert "error: requests: " in capsys.readouterr().err
