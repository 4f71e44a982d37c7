"""A refiner behind HTTP: the native one's answers, and every failure within the budget."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

import pytest

from hybrid.api import Hybrid
from hybrid.deadline import Deadline
from hybrid.embedded import weights_path
from hybrid.embedded.tasks import TASKS, evaluation_set
from hybrid.errors import BackendError, Cancelled, CapabilityError, RequestError
from hybrid.protocols import Refiner, SamplingParams
from hybrid.refiners.context import RefineContext
from hybrid.refiners.gemma import GemmaRefiner
from hybrid.refiners.refine import refine, write_alone
from hybrid.refiners.vllm import VllmRefiner
from hybrid.types import Draft, RefineMode, RefineParams, Request
from tests.refiners.fake_server import (
    CLOSE,
    EMPTY,
    GARBAGE,
    HANG,
    NAME,
    NAN,
    NO_IDS,
    NO_LOGPROBS,
    FakeServer,
    Fault,
    serve,
)

pytestmark = pytest.mark.serial

LIMIT = 32
PROMPT = "sort up: 4 8 1 9 3"


@dataclass(frozen=True)
class Choice:
    url: str
    model: str = "embedded"
    device: str = "auto"
    served_as: str | None = NAME
    api_key_env: str = "SMALL_KEY"
    timeout: float = 5.0


@pytest.fixture(scope="module")
def native() -> GemmaRefiner:
    return GemmaRefiner.from_directory(weights_path("refiner"))


@pytest.fixture
def server(native: GemmaRefiner, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("hybrid.refiners.server._FIRST_WAIT_S", 0.01)
    with serve(native) as fake:
        yield fake


def connect(server: FakeServer, **options: object) -> VllmRefiner:
    choice = Choice(server.url, **options)  # type: ignore[arg-type]
    return VllmRefiner.connect(weights_path("refiner"), choice)


def draft_of(refiner: GemmaRefiner, text: str) -> Draft:
    ids = (*refiner.tokenizer.encode(text), min(refiner.end_token_ids))
    return Draft(ids, text, (0.0,) * len(ids), (), "stop")


def refined(
    refiner: Refiner, draft: Draft, mode: RefineMode = "verify", deadline: Deadline | None = None
) -> tuple[int, ...]:
    params = RefineParams(mode, min_token_logprob=-4.0)
    deadline = deadline or Deadline()
    return refine(RefineContext(Request(PROMPT), draft, params, LIMIT, deadline, refiner))[
        1
    ].token_ids


@pytest.mark.parametrize("task", TASKS)
def test_it_is_the_native_refiner_over_http(
    task: str, server: FakeServer, native: GemmaRefiner
) -> None:
    remote = connect(server)
    for instance in evaluation_set(task, 3):
        request = Request(instance.prompt)
        alone = write_alone(native, request, LIMIT, Deadline()).token_ids
        assert write_alone(remote, request, LIMIT, Deadline()).token_ids == alone
        draft = (*alone[: len(alone) // 2], 7, 9)
        here, there = (one.open(request, LIMIT) for one in (native, remote))
        ours, theirs = here.score(draft), there.score(draft)
        assert theirs.choices == ours.choices
        assert theirs.logprobs == pytest.approx(ours.logprobs, abs=1e-4)
        for session in (here, there):
            session.rewind(2)
        assert there.write(alone[2:3], LIMIT) == here.write(alone[2:3], LIMIT)


@pytest.mark.parametrize("mode", ["verify", "cascade", "score", "rewrite", "repair"])
def test_every_mode_of_a_refiner_works_over_http(
    mode: RefineMode, server: FakeServer, native: GemmaRefiner
) -> None:
    draft = draft_of(native, "1 3 4 9 8")
    params = RefineParams(mode, min_token_logprob=-2.0, repair_with="refiner")
    here, there = (
        refine(RefineContext(Request(PROMPT), draft, params, LIMIT, Deadline(), one))[1]
        for one in (native, connect(server))
    )
    assert (there.token_ids, there.text) == (here.token_ids, here.text)
    assert there.finish_reason == here.finish_reason


def test_a_bare_prompt_goes_through_chat_and_the_rest_through_completions(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, native: GemmaRefiner
) -> None:
    monkeypatch.setenv("SMALL_KEY", "s3cret")
    remote = connect(server)
    write_alone(remote, Request(PROMPT), LIMIT, Deadline())
    refined(remote, draft_of(native, "1 3 4 9 8"))
    paths = [path for path, _, _ in server.requests]
    assert paths == ["/v1/chat/completions", "/v1/completions", "/v1/completions"]
    assert {key for _, _, key in server.requests} == {"Bearer s3cret"}
    assert all(body["model"] == NAME for _, body, _ in server.requests)


def test_any_server_can_generate_and_rewrite(server: FakeServer, native: GemmaRefiner) -> None:
    """Without vLLM's additions there are no token ids: the text is read with our tokenizer."""
    server.faults, server.repeats = [NO_IDS], True
    remote = connect(server)
    alone = write_alone(native, Request(PROMPT), LIMIT, Deadline())
    assert write_alone(remote, Request(PROMPT), LIMIT, Deadline()).token_ids == alone.token_ids
    draft = draft_of(native, "1 3")
    assert refined(remote, draft, "rewrite") == refined(native, draft, "rewrite")
    with pytest.raises(CapabilityError, match=r"vLLM 0\.10\.2"):
        refined(remote, draft)


def test_a_server_without_log_probabilities_cannot_verify(
    server: FakeServer, native: GemmaRefiner
) -> None:
    server.faults = [NO_LOGPROBS]
    with pytest.raises(CapabilityError, match="gave no prompt_logprobs") as caught:
        refined(connect(server), draft_of(native, "1 3"))
    assert caught.value.device == server.url


def test_a_sampled_answer_cannot_be_verified_by_a_server(server: FakeServer) -> None:
    session = connect(server).open(Request(PROMPT), LIMIT, sampling=SamplingParams(0.7, 1))
    with pytest.raises(CapabilityError, match="at temperature 0"):
        session.score((1, 2))


@pytest.mark.parametrize("fault", [429, 500, 503, CLOSE])
def test_what_may_pass_is_tried_again(
    fault: Fault, server: FakeServer, native: GemmaRefiner
) -> None:
    server.faults = [fault, fault] if fault != CLOSE else []
    draft = draft_of(native, "1 3")
    remote = connect(server)
    if fault == CLOSE:
        server.faults = [CLOSE]
        alone = write_alone(native, Request(PROMPT), LIMIT, Deadline())
        assert write_alone(remote, Request(PROMPT), LIMIT, Deadline()).token_ids == alone.token_ids
        assert [path for path, _, _ in server.requests] == [
            "/v1/chat/completions", "/v1/completions",
        ]  # fmt: skip
    else:
        assert refined(remote, draft) == refined(native, draft)
        assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (401, "set the environment variable SMALL_KEY"),
        (403, "the key in SMALL_KEY"),
        (404, "the url ends in /v1"),
        (400, "scripted 400"),
        (GARBAGE, "not a JSON object"),
        (EMPTY, "an answer without choices"),
        (NAN, "unexpected answer: choices"),
    ],
)
def test_what_will_not_pass_is_said_at_once(
    fault: Fault, said: str, server: FakeServer, native: GemmaRefiner
) -> None:
    server.faults, server.repeats = [fault], True
    with pytest.raises(BackendError, match=said) as caught:
        refined(connect(server), draft_of(native, "1 3"))
    assert caught.value.stage == "score" and not caught.value.retryable
    assert server.url in str(caught.value)
    assert len(server.requests) == 1


def test_patience_ends(server: FakeServer, native: GemmaRefiner) -> None:
    server.faults, server.repeats = [500], True
    with pytest.raises(BackendError, match="scripted 500"):
        refined(connect(server), draft_of(native, "1 3"))
    assert len(server.requests) == 4


def test_a_server_may_ask_for_patience(server: FakeServer, native: GemmaRefiner) -> None:
    server.faults, server.retry_after = [429], "0.2"
    started = time.monotonic()
    refined(connect(server), draft_of(native, "1 3"))
    assert time.monotonic() - started >= 0.2
    server.faults, server.retry_after = [429], "3600"
    with pytest.raises(BackendError, match="429"):
        refined(connect(server), draft_of(native, "1 3"))


def test_a_silent_server_is_given_up_after_the_timeout(
    server: FakeServer, native: GemmaRefiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybrid.refiners.server.RETRIES", 1)
    server.faults, server.repeats = [HANG], True
    with pytest.raises(BackendError, match="silent for 100 ms"):
        refined(connect(server, timeout=0.1), draft_of(native, "1 3"))


def test_nobody_listening_is_said(native: GemmaRefiner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid.refiners.server._FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    remote = VllmRefiner.connect(weights_path("refiner"), Choice("http://127.0.0.1:9/v1"))
    with pytest.raises(BackendError, match=r"http://127\.0\.0\.1:9/v1") as caught:
        remote.open(Request(PROMPT), LIMIT)
    assert caught.value.retryable


def test_a_model_that_is_not_served_is_named(server: FakeServer) -> None:
    with pytest.raises(BackendError, match="did you mean 'small'"):
        connect(server, served_as="smal").open(Request(PROMPT), LIMIT)


def test_a_prompt_over_the_context_is_refused(server: FakeServer) -> None:
    with pytest.raises(RequestError, match="at most 510 tokens"):
        connect(server).open(Request("cat " * 600), LIMIT)


def test_the_deadline_cuts_a_slow_stream_and_keeps_its_start(
    server: FakeServer, native: GemmaRefiner
) -> None:
    remote = connect(server)
    alone = write_alone(native, Request(PROMPT), LIMIT, Deadline()).token_ids
    remote.open(Request(PROMPT), LIMIT)
    server.faults = ["slow"]
    session = remote.open(Request(PROMPT), LIMIT, Deadline.after(0.18))
    written, reason = session.write((), LIMIT)
    assert reason == "budget"
    assert 0 < len(written) < len(alone)
    assert written == alone[: len(written)]
    assert server.given_up.wait(5)  # the connection is closed, and the server notices


def test_cancelling_does_not_wait_for_the_server(server: FakeServer, native: GemmaRefiner) -> None:
    remote, deadline = connect(server), Deadline()
    remote.open(Request(PROMPT), LIMIT)
    server.faults = [HANG]
    Timer(0.1, deadline.cancel).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        refined(remote, draft_of(native, "1 3"), deadline=deadline)
    assert time.monotonic() - started < 2


POLICY = """
version: 1
models:
  refiner: {{backend: vllm, model: {model}, served_as: small, url: "{url}", timeout: 100ms}}
defaults: {{draft: {{max_denoising_steps: 4}}, refine: {{mode: {mode}}}}}
"""


FAULTS = (401, 429, 500, HANG, CLOSE, GARBAGE, EMPTY)


@pytest.mark.parametrize(
    ("mode", "fault"),
    [
        *(("verify", fault) for fault in FAULTS),
        *(("rewrite", fault) for fault in (HANG, CLOSE, 500)),
        *((mode, 500) for mode in ("score", "cascade", "guide")),
    ],
)
def test_whatever_the_server_does_the_draft_is_returned_in_time(
    mode: str, fault: Fault, server: FakeServer, tmp_path: Path
) -> None:
    """`close` before every token: a stream that never gets further than two."""
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY.format(url=server.url, model=weights_path("refiner"), mode=mode))
    server.faults, server.repeats = [fault], True
    with Hybrid.from_policy(file) as hybrid:
        result = hybrid.generate(PROMPT, budget="500ms")
    assert result.draft is not None
    assert result.timing.total_s < 1.0
    if fault != CLOSE or mode == "rewrite":
        assert result.text == result.draft.text
        assert any("the draft stands" in note for note in result.notes) or (
            result.refinement and result.refinement.finish_reason == "budget"
        )
