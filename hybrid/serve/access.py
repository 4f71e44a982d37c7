"""Who may ask: API keys by name, and what each may use.

Keys are kept as SHA-256 digests. They are long random strings, so a slow hash would protect nothing
that their length does not, and it would cost every request. Once a key is set, everything but
`/health` and the playground's own files needs one.
"""

import hashlib
import hmac
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from hybrid.errors import PolicyError, RequestError
from hybrid.policies.document import Document
from hybrid.serve.errors import ApiError, error_response

OPEN_PATHS = ("/health", "/", "/playground.js", "/playground.css")
KEYS_VARIABLE = "HYBRID_API_KEYS"
_MINUTE_S = 60.0


class KeyEntry(BaseModel):
    """One key of a file, and what it may use."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=64)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    concurrent: Annotated[int, Field(ge=1)] | None = None
    policies: list[str] | None = None


class KeyFile(BaseModel):
    """What a file of keys says."""

    model_config = ConfigDict(extra="forbid", strict=True)

    keys: Annotated[list[KeyEntry], Field(min_length=1)]


@dataclass
class Bucket:
    """A limit a minute: it refills all the time, and what is spent later may overdraw it."""

    a_minute: int
    left: float = field(init=False)
    at: float = field(init=False)

    def __post_init__(self) -> None:
        self.left, self.at = float(self.a_minute), time.monotonic()

    def wait_s(self) -> float:
        """Seconds until something is left; 0 if something is."""
        now = time.monotonic()
        self.left = min(self.a_minute, self.left + (now - self.at) * self.a_minute / _MINUTE_S)
        self.at = now
        return max(0.0, (1 - self.left) * _MINUTE_S / self.a_minute)

    def spend(self, amount: float) -> None:
        """Take an amount away."""
        self.left -= amount


@dataclass
class Key:
    """A key at work. Without a digest it is everybody, who may use everything."""

    name: str
    digest: bytes = b""
    policies: tuple[str, ...] | None = None
    concurrent: int | None = None
    requests: Bucket | None = None
    tokens: Bucket | None = None
    running: int = field(default=0, init=False)

    def check_policy(self, model: str) -> None:
        """Raises ApiError (403) for a policy that this key may not use."""
        if self.policies is not None and model not in self.policies:
            message = f"key {self.name} may use {', '.join(self.policies)}"
            raise ApiError(403, message, "policy_not_allowed", "model")

    def enter(self) -> None:
        """Begin a request; raises ApiError (429) over a limit."""
        if self.concurrent is not None and self.running >= self.concurrent:
            message = f"key {self.name} has {self.running} requests running, as many as it may"
            raise ApiError(429, message, "concurrency_limit", retry_after_s=1.0)
        for bucket, what in ((self.requests, "requests"), (self.tokens, "tokens")):
            if bucket is not None and (wait_s := bucket.wait_s()) > 0:
                message = f"key {self.name} may use {bucket.a_minute} {what} a minute"
                raise ApiError(429, message, f"{what}_limit", retry_after_s=math.ceil(wait_s))
        if self.requests is not None:
            self.requests.spend(1)
        self.running += 1

    def leave(self) -> None:
        """End a request."""
        self.running -= 1

    def spend(self, tokens: int) -> None:
        """Count the tokens of an answer."""
        if self.tokens is not None:
            self.tokens.spend(tokens)


EVERYBODY = Key("everybody")


def hash_key(secret: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def read_key_file(file: Path, environment: Mapping[str, str]) -> list[Key]:
    """The keys of a YAML file; raises PolicyError with file, line and key for what is wrong."""
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError("keys", str(file), f"a UTF-8 text file ({error})") from None
    document = Document(str(file), text, environment, KeyFile, "a file of keys")
    if document.problems:
        raise PolicyError(document.problems)
    try:
        entries = KeyFile.model_validate(document.values).keys
    except ValidationError as error:
        raise PolicyError(
            [document.problem(found) for found in error.errors(include_url=False)]
        ) from None
    return [_key(entry) for entry in entries]


def _key(entry: KeyEntry) -> Key:
    return Key(
        name=entry.name,
        digest=bytes.fromhex(entry.sha256),
        policies=None if entry.policies is None else tuple(entry.policies),
        concurrent=entry.concurrent,
        requests=Bucket(entry.requests_per_minute) if entry.requests_per_minute else None,
        tokens=Bucket(entry.tokens_per_minute) if entry.tokens_per_minute else None,
    )


def read_key_variable(text: str) -> list[Key]:
    """The keys of `name=key,name=key`, without limits; raises RequestError, which shows no key."""
    keys = []
    for number, pair in enumerate(filter(None, text.split(",")), 1):
        name, equals, secret = pair.strip().partition("=")
        if not (name and equals and secret):
            given = f"entry {number}"
            raise RequestError(KEYS_VARIABLE, given, "pairs such as alice=KEY, with commas between")
        keys.append(Key(name, hash_key(secret)))
    return keys


class AccessControl:
    """ASGI middleware: finds the key that a request shows, and holds it to its limits."""

    def __init__(self, app: ASGIApp, keys: Sequence[Key]) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        key = EVERYBODY
        if self._keys and path not in OPEN_PATHS:
            try:
                key = self._find(Headers(scope=scope))
                key.enter()
            except ApiError as error:
                await error_response(path, error)(scope, receive, send)
                return
        scope.setdefault("state", {})["key"] = key
        try:
            await self._app(scope, receive, send)
        finally:
            if key is not EVERYBODY:
                key.leave()

    def _find(self, headers: Headers) -> Key:
        """The key; every one is compared, so that time tells nothing of which is near."""
        kind, _, secret = headers.get("authorization", "").partition(" ")
        given = hash_key(secret if kind.lower() == "bearer" else headers.get("x-api-key", ""))
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, given):
                found = key
        if found is None:
            message = "send a valid key: Authorization: Bearer KEY, or x-api-key: KEY"
            challenge = {"www-authenticate": "Bearer"}
            raise ApiError(401, message, "invalid_api_key", headers=challenge)
        return found


def key_of(request: Request) -> Key:
    """Whose request it is."""
    key: Any = request.scope.get("state", {}).get("key", EVERYBODY)
    assert isinstance(key, Key)
    return key
