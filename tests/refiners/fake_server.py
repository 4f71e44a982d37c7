"""A model server on localhost that answers as vLLM does, from a refiner, and fails on request."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import torch

from hybrid.refiners.gemma import GemmaRefiner, GemmaSession
from hybrid.types import Message, Request

NAME = "small"
HANG, CLOSE, GARBAGE, EMPTY, NO_IDS, NO_LOGPROBS, NAN = (
    "hang", "close", "garbage", "empty", "no ids", "no log-probabilities", "nan",
)  # fmt: skip
Fault = str | int


@dataclass
class FakeServer:
    """`faults` are used up one a completion, the last one for ever if it `repeats`."""

    refiner: GemmaRefiner
    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    repeats: bool = False
    retry_after: str | None = None
    requests: list[tuple[str, dict[str, Any], str | None]] = field(default_factory=list)
    released: Event = field(default_factory=Event)
    given_up: Event = field(default_factory=Event)

    def next_fault(self) -> Fault | None:
        if not self.faults:
            return None
        return self.faults[0] if self.repeats and len(self.faults) == 1 else self.faults.pop(0)


@contextmanager
def serve(refiner: GemmaRefiner) -> Iterator[FakeServer]:
    fake = FakeServer(refiner)

    class Handler(_Handler):
        server_state = fake

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield fake
    finally:
        fake.released.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_state: FakeServer

    def log_message(self, *arguments: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        model = {"id": NAME, "max_model_len": 512}
        self._send(200, {"object": "list", "data": [model]})

    def do_POST(self) -> None:
        fake = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        fake.requests.append((self.path, body, self.headers.get("authorization")))
        fault = fake.next_fault()
        if isinstance(fault, int):
            self._send(fault, {"error": {"message": f"scripted {fault}", "code": fault}})
        elif fault == HANG:
            fake.released.wait(20)
        elif fault == GARBAGE:
            self._send_text(200, "<html>" if not body.get("stream") else "data: {oops\n\n")
        elif fault == EMPTY:
            self._send(200, {"choices": []})
        elif body.get("stream"):
            self._stream(body, fault)
        else:
            self._send(200, {"choices": [self._score(body, fault)]})

    def _score(self, body: dict[str, Any], fault: Fault | None) -> dict[str, Any]:
        ids = body["prompt"]
        refiner = self.server_state.refiner
        session = GemmaSession(refiner.model, ids[:1], len(ids) + 1)
        with torch.inference_mode():
            session.score(ids[1:])
            logits = refiner.model.logits(session._states)
        log_p = logits.log_softmax(-1)
        places: list[Any] = [None]
        for token, row, own in zip(ids[1:], log_p, logits.argmax(-1).tolist(), strict=False):
            one = {token: row[token].item(), own: row[own].item()}
            value = float("nan") if fault == NAN else None
            places.append({str(key): {"logprob": value or p} for key, p in one.items()})
        choice: dict[str, Any] = {
            "text": "", "finish_reason": "length", "token_ids": [int(logits[-1].argmax())],
            "prompt_logprobs": places,
        }  # fmt: skip
        if fault == NO_LOGPROBS:
            choice["prompt_logprobs"] = None
        if fault == NO_IDS:
            choice["token_ids"] = None
        return choice

    def _stream(self, body: dict[str, Any], fault: Fault | None) -> None:
        refiner, is_chat = self.server_state.refiner, "messages" in body
        if is_chat:
            turns = tuple(Message(m["role"], m["content"]) for m in body["messages"])
            ids = refiner.tokenizer.encode_conversation(Request(messages=turns).conversation)
        else:
            ids = body["prompt"]
        session = GemmaSession(refiner.model, list(ids), body["max_tokens"])
        token_ids, reason = session.write((), body["max_tokens"])
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for place, token in enumerate(token_ids):
            if fault == CLOSE and place == 2:
                return
            if fault == "slow":
                time.sleep(0.05)
            text = refiner.decode([token])
            if place and refiner.decode(token_ids[: place + 1]).endswith(" " + text):
                text = " " + text
            choice: dict[str, Any] = {"delta": {"content": text}} if is_chat else {"text": text}
            choice["finish_reason"] = reason if place == len(token_ids) - 1 else None
            if fault != NO_IDS:
                choice["token_ids"] = [token]
            try:
                self._write_event({"choices": [choice]})
            except OSError:
                self.server_state.given_up.set()
                return
        self._write_event({"choices": [], "usage": {}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _write_event(self, value: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()

    def _send(self, status: int, value: dict[str, Any]) -> None:
        self._send_text(status, json.dumps(value))

    def _send_text(self, status: int, text: str) -> None:
        self.send_response(status)
        if status == 429 and self.server_state.retry_after:
            self.send_header("retry-after", self.server_state.retry_after)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
