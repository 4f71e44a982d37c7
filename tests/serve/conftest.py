"""A server over scripted models, in process; and one over the embedded pair, on a socket."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.testclient import TestClient

from hybrid import Hybrid
from hybrid.backends import Models
from hybrid.drafters.scripted import ScriptedDrafter
from hybrid.policies.loader import parse_policy
from hybrid.refiners.scripted import ScriptedRefiner
from hybrid.serve import Settings, create_app
from hybrid.serve.access import Key
from hybrid.serve.run import Server

PROBES = {"add 12 + 34": "46", "add 12 + 34 " * 8: "46"}  # what calibration asks
FOX = "the quick brown fox"
ANSWERS = {"say it": FOX, "wrong": "right", **PROBES}
POLICY = """
version: 1
defaults: {draft: {max_denoising_steps: 4}, max_new_tokens: 64, budget: 30s}
tasks: {chat: {}, fast: {draft: {max_denoising_steps: 2}}}
effort: {low: 1s, high: 9s}
"""

MakeApp = Callable[..., Any]
MakeClient = Callable[..., TestClient]


@pytest.fixture
def make_app(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> MakeApp:
    """Call with a drafter, a policy, keys or settings: an application over scripted models."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(
        drafter: ScriptedDrafter | None = None,
        policy: str = POLICY,
        refiner: ScriptedRefiner | None = None,
        keys: Sequence[Key] = (),
        settings: Settings | None = None,
    ) -> Any:
        models = Models(drafter or ScriptedDrafter(ANSWERS), refiner or ScriptedRefiner(ANSWERS))
        hybrid = Hybrid(parse_policy(policy, "scripted"), models)
        return create_app(hybrid, keys=keys, settings=settings)

    return make


@pytest.fixture
def make_client(make_app: MakeApp) -> Iterator[MakeClient]:
    """As `make_app`: a client of the application, once it is ready."""
    with ExitStack() as stack:

        def make(**options: Any) -> TestClient:
            app = make_app(**options)
            client = stack.enter_context(TestClient(app, raise_server_exceptions=False))
            until(lambda: app.state.service.is_loaded)
            return client

        yield make


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    """A client of the usual application."""
    return make_client()


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The address of a server over the embedded pair, on a socket."""
    with running(create_app(["balanced", "fast"])) as url:
        yield url


class running:
    """A server of an application in a thread, on a free port: its address while it is entered."""

    def __init__(self, app: Any) -> None:
        self.server = Server(app, "127.0.0.1", 0)
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._service = app.state.service

    def __enter__(self) -> str:
        self._thread.start()
        until(lambda: self.server.started and self._service.is_loaded)
        return self.server.address

    def __exit__(self, *exception: object) -> None:
        self.server.should_exit = True
        self._thread.join(60)


def until(holds: Callable[[], object], patience_s: float = 60.0) -> None:
    """Wait until something holds; fails a test whose condition never does."""
    end = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)


def ask(content: str = "say it", **more: Any) -> dict[str, Any]:
    """A chat request's body."""
    return {"messages": [{"role": "user", "content": content}], **more}
