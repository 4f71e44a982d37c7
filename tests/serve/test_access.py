"""Keys: who may ask, how much, and what is kept of them."""

from pathlib import Path
from typing import Any

import pytest

from hybrid.errors import PolicyError, RequestError
from hybrid.serve.access import Bucket, Key, hash_key, read_key_file, read_key_variable
from tests.serve.conftest import MakeClient, ask

CHAT = "/v1/chat/completions"


def keys(**limits: Any) -> list[Key]:
    return [Key("alice", hash_key("secret-a"), **limits), Key("bob", hash_key("secret-b"))]


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def test_everything_but_health_needs_a_key_once_one_is_set(make_client: MakeClient) -> None:
    client = make_client(keys=keys())
    assert client.get("/health").status_code == 200
    for path in ("/ready", "/version", "/metrics", "/v1/models", "/openapi.json", "/nowhere"):
        response = client.get(path)
        assert response.status_code == 401, path
        assert response.headers["www-authenticate"] == "Bearer"
    assert client.post(CHAT, json=ask()).json()["error"]["type"] == "authentication_error"
    assert client.post("/v1/messages", json=ask()).json()["error"]["type"] == "authentication_error"
    assert client.post(CHAT, json=ask(), headers=bearer("wrong")).status_code == 401
    assert client.post(CHAT, json=ask(), headers=bearer("")).status_code == 401


@pytest.mark.parametrize("headers", [bearer("secret-b"), {"x-api-key": "secret-a"}])
def test_any_of_several_keys_opens(make_client: MakeClient, headers: dict[str, str]) -> None:
    assert make_client(keys=keys()).post(CHAT, json=ask(), headers=headers).status_code == 200


def test_requests_a_minute(make_client: MakeClient) -> None:
    client = make_client(keys=keys(requests=Bucket(2)))
    headers = bearer("secret-a")
    codes = [client.post(CHAT, json=ask(), headers=headers).status_code for _ in range(3)]
    assert codes == [200, 200, 429]
    response = client.post(CHAT, json=ask(), headers=headers)
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert response.json()["error"]["type"] == "rate_limit_error"
    assert client.post(CHAT, json=ask(), headers=bearer("secret-b")).status_code == 200


def test_tokens_a_minute_are_counted_after_the_answer(make_client: MakeClient) -> None:
    client = make_client(keys=keys(tokens=Bucket(20)))
    codes = [
        client.post(CHAT, json=ask(), headers=bearer("secret-a")).status_code for _ in range(2)
    ]
    assert codes == [200, 429]


def test_a_key_may_be_held_to_policies(make_client: MakeClient) -> None:
    client = make_client(keys=keys(policies=("other",)))
    response = client.post(CHAT, json=ask(), headers=bearer("secret-a"))
    assert response.status_code == 403
    assert response.json()["error"]["type"] == "permission_error"
    listed = client.get("/v1/models", headers=bearer("secret-a")).json()
    assert listed["data"] == []
    assert len(client.get("/v1/models", headers=bearer("secret-b")).json()["data"]) == 2


def test_a_bucket_refills_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    bucket = Bucket(60)
    bucket.spend(63)
    assert bucket.wait_s() == pytest.approx(4.0)
    now += 4.5
    assert bucket.wait_s() == 0


def test_a_file_of_keys_holds_digests(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    digest = hash_key("secret").hex()
    file.write_text(
        f"keys:\n- {{name: alice, sha256: {digest}, requests_per_minute: 60, concurrent: 2}}\n"
    )
    (key,) = read_key_file(file, {})
    assert (key.name, key.digest, key.concurrent) == ("alice", hash_key("secret"), 2)
    assert key.requests is not None and key.requests.a_minute == 60


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "keys:\n- {name: a, sha256: abc}\n",
            r"keys.yaml:2:\d+: keys.0.sha256: String should match",
        ),
        (
            "keys:\n- {name: a, sha25: abc}\n",
            r"keys.yaml:2:\d+: keys.0.sha25: unknown key; did you mean .sha256",
        ),
        ("keys: []\n", "keys"),
        ("key: x\n", "keys"),
        ("keys: [\n", "keys.yaml:"),
    ],
)
def test_a_wrong_file_of_keys_is_an_error_with_its_place(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    with pytest.raises(PolicyError, match=said):
        read_key_file(file, {})


def test_keys_come_from_the_environment_too() -> None:
    found = read_key_variable("alice=one, bob=two=2")
    assert [(key.name, key.digest) for key in found] == [
        ("alice", hash_key("one")),
        ("bob", hash_key("two=2")),
    ]
    assert read_key_variable("") == []
    with pytest.raises(RequestError) as caught:
        read_key_variable("alice=one,hush-hush")
    assert "entry 2" in str(caught.value) and "hush" not in str(caught.value)


def test_a_key_is_counted_while_its_request_runs() -> None:
    from hybrid.serve.errors import ApiError

    key = Key("alice", concurrent=1)
    key.enter()
    with pytest.raises(ApiError) as caught:
        key.enter()
    assert caught.value.status == 429
    key.leave()
    key.enter()
