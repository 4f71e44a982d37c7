"""Bad input and hard endings over a real socket: a clear answer or a closed connection."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from hybrid.serve import Settings, create_app
from tests.serve.conftest import ask, running, until

PROMPT = "sort up: 4 8 1 9 3"
COMMAND = "import sys; from hybrid.cli import main; sys.exit(main())"
BODY = json.dumps(ask(PROMPT)).encode()


@pytest.fixture(scope="module")
def strict_url() -> Iterator[str]:
    """A server with short patience."""
    settings = Settings(header_timeout_s=0.3, body_timeout_s=0.3, max_body_bytes=100_000)
    with running(create_app("fast", settings=settings)) as url:
        yield url


def talk(url: str, sent: bytes, patience_s: float = 20.0) -> bytes:
    """What a connection answers to these bytes until it is closed."""
    with connect(url) as connection:
        connection.settimeout(patience_s)
        connection.sendall(sent)
        found = b""
        while part := connection.recv(65536):
            found += part
        return found


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)))


def post(body: bytes, *headers: str, version: str = "1.1") -> bytes:
    lines = [
        f"POST /v1/chat/completions HTTP/{version}",
        "host: test",
        "content-type: application/json",
        "connection: close",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def still_answers(url: str) -> bool:
    response = httpx2.post(f"{url}/v1/chat/completions", json=ask(PROMPT))
    return bool(response.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'"text"', 400),
        (b"null", 400),
        (b"\xff\xfe", 400),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (b'{"messages": [{"role": "user", "content": "a\\u0000b"}]}', 200),
        (b'{"\\ud800": 1, "messages": [{"role": "user", "content": "a"}]}', 400),
        (b'{"hybrid": {"\\ud800": 1}, "messages": [{"role": "user", "content": "a"}]}', 400),
        (b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', 400),
        (b'{"messages": [{"role": "user", "content": "a"}], "seed": 1' + b"0" * 5000 + b"}", 400),
        (b"[" * 50_000, 400),
        (b'{"a":' * 10_000, 400),
        (json.dumps(ask("word " * 15_000)).encode(), 400),
    ],
)
def test_bodies_that_mean_nothing(strict_url: str, body: bytes, status: int) -> None:
    answer = talk(strict_url, post(body, f"content-length: {len(body)}"))
    assert int(answer.split()[1]) == status, answer[:300]
    assert status == 200 or json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
    assert still_answers(strict_url)


def test_a_body_above_the_limit_is_refused_whatever_it_declares(strict_url: str) -> None:
    big = b"x" * 200_000
    assert b" 413 " in talk(strict_url, post(b"", "content-length: 10000000"))[:20]
    chunked = b"%x\r\n" % len(big) + big + b"\r\n0\r\n\r\n"
    try:
        answer = talk(strict_url, post(chunked, "transfer-encoding: chunked"))
    except ConnectionError:  # closed before all was sent
        answer = b""
    assert answer == b"" or b" 413 " in answer[:20]
    assert still_answers(strict_url)


def test_chunked_bodies_and_old_http_are_answered(strict_url: str) -> None:
    half = len(BODY) // 2
    chunks = b"".join(b"%x\r\n" % len(p) + p + b"\r\n" for p in (BODY[:half], BODY[half:]))
    answer = talk(strict_url, post(chunks + b"0\r\n\r\n", "transfer-encoding: chunked"))
    assert b" 200 " in answer[:20]
    old = talk(strict_url, post(BODY, f"content-length: {len(BODY)}", version="1.0"))
    assert b" 200 " in old[:20]


def test_pipelined_requests_are_answered_in_order(strict_url: str) -> None:
    one = post(BODY, f"content-length: {len(BODY)}").replace(b"connection: close\r\n", b"")
    answer = talk(strict_url, one + b"GET /health HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n")
    assert answer.index(b"chat.completion") < answer.index(b"alive")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"nonsense\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"GET /health HTTP/1.1\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused(strict_url: str, sent: bytes) -> None:
    try:
        answer = talk(strict_url, sent)
    except ConnectionError:
        answer = b""
    assert answer == b"" or b" 400 " in answer[:20]
    assert still_answers(strict_url)


def test_headers_that_never_end_close_the_connection(strict_url: str) -> None:
    with connect(strict_url) as connection:
        connection.settimeout(20)
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n")
        with pytest.raises(ConnectionError):
            while True:
                connection.sendall(b"x: y\r\n")
                time.sleep(0.02)
    assert still_answers(strict_url)


def test_a_connection_that_says_nothing_is_closed(strict_url: str) -> None:
    with connect(strict_url) as connection:
        connection.settimeout(20)
        with pytest.raises(ConnectionError):
            if connection.recv(1) == b"":
                raise ConnectionError


def test_a_body_that_never_ends_is_a_timeout(strict_url: str) -> None:
    answer = talk(strict_url, post(b'{"messages"', "content-length: 500"))
    assert b" 408 " in answer[:20]
    assert b"the body did not come within 0.3 s" in answer


def start(*arguments: str, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """`hybrid serve` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )


def address(process: "subprocess.Popen[str]") -> str:
    """Where it answers, once it does."""
    assert process.stdout is not None
    line = process.stdout.readline()
    match = re.search(r"answers at (\S+)/v1", line)
    assert match, line + (process.stderr.read() if process.stderr else "")
    return match[1]


def test_the_command_serves_reloads_drains_and_ends_well(tmp_path: Path) -> None:
    policy = tmp_path / "mine.yaml"
    policy.write_text("version: 1\ndefaults: {draft: {max_denoising_steps: 4}}\n")
    process = start(str(policy), "--port", "0", "--drain", "20s", env={"HYBRID_API_KEYS": "me=k"})
    try:
        url = address(process)
        client = httpx2.Client(base_url=url, headers={"authorization": "Bearer k"}, timeout=60)

        def label() -> str:
            body = client.post("/v1/chat/completions", json=ask(PROMPT, model="mine")).json()
            return str(body["hybrid"]["plan"]["label"])

        assert httpx2.get(f"{url}/ready").status_code == 401
        assert label() == "4 steps"
        policy.write_text("version: 1\ndefaults: {draft: {max_denoising_steps: 11}}\n")
        process.send_signal(signal.SIGHUP)
        assert label() == "11 steps"
        policy.write_text("version: 1\nmodels: {refiner: null}\n")
        process.send_signal(signal.SIGHUP)
        assert label() == "11 steps"
        policy.write_text("version: 1\nbudgt: 1s\n")
        assert label() == "11 steps"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert "restart for other models" in errors
        assert "stays as it was" in errors and "budgt" in errors
        assert PROMPT not in errors
    finally:
        process.kill()


def test_a_taken_port_is_an_error_in_one_line(strict_url: str) -> None:
    port = strict_url.rpartition(":")[2]
    process = start("fast", "--port", port)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"127.0.0.1:{port} cannot be had" in errors


def test_without_the_extra_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from hybrid.cli import main

    for name in [*sys.modules]:
        if name.startswith("hybrid.serve"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve"]) == 2
    assert "pip install 'hybrid-gemma[serve]'" in capsys.readouterr().err


def test_stopping_lets_requests_end_and_tells_the_rest(tmp_path: Path) -> None:
    """Requests that run when a server stops: the short one ends, the long one is told why not."""
    from hybrid import Hybrid
    from hybrid.backends import Models
    from hybrid.drafters.scripted import ScriptedDrafter
    from hybrid.policies.loader import parse_policy
    from hybrid.refiners.scripted import ScriptedRefiner
    from tests.serve.conftest import ANSWERS

    answers = {**ANSWERS, "for ever": "x" * 50}

    class Slow(ScriptedDrafter):
        def draft(self, jobs: Any) -> Any:
            forever = jobs[0].request.conversation[-1].content == "for ever"
            return ScriptedDrafter(answers, 10_000 if forever else 40, 0.01).draft(jobs)

    policy = parse_policy("version: 1\ndefaults: {draft: {max_denoising_steps: 1000}}\n", "slow")
    hybrid = Hybrid(policy, Models(Slow(answers), ScriptedRefiner(answers)))
    app = create_app(hybrid, settings=Settings(drain_s=1.5))
    server = running(app)
    with server as url:
        from concurrent.futures import ThreadPoolExecutor

        def send(prompt: str) -> httpx2.Response:
            return httpx2.post(f"{url}/v1/chat/completions", json=ask(prompt), timeout=60)

        with ThreadPoolExecutor(3) as pool:
            short, long = pool.submit(send, "say it"), pool.submit(send, "for ever")
            until(lambda: app.state.service.in_flight == 2)
            server.server.should_exit = True
            until(lambda: app.state.service.is_draining)
            assert short.result().status_code == 200
            refused = long.result()
    assert refused.status_code == 503
    assert "stopping" in refused.json()["error"]["message"]
