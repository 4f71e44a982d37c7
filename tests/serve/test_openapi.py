"""Whatever the OpenAPI document allows or forbids: no 5xx, and no shape outside of it.

More examples: HYBRID_FUZZ_EXAMPLES=2000 pytest tests/serve/test_openapi.py.
"""

import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from hybrid.drafters.scripted import ScriptedDrafter
from tests.serve.conftest import MakeClient

EXAMPLES = int(os.environ.get("HYBRID_FUZZ_EXAMPLES", "3"))
CHECKS = [
    not_a_server_error,
    response_schema_conformance,
    content_type_conformance,
    status_code_conformance,
]


class Anything(dict[str, str]):
    """A script that has an answer to every prompt."""

    def __contains__(self, prompt: object) -> bool:
        return True

    def __missing__(self, prompt: str) -> str:
        return "46"


@pytest.fixture
def api(make_client: MakeClient) -> TestClient:
    return make_client(drafter=ScriptedDrafter(Anything()))


@pytest.fixture
def document(api: TestClient) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", api.app)


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_every_operation_keeps_to_its_description(document: Any, mode: Any) -> None:
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) == 13
    for operation in operations:

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def keeps_to_it(case: Any) -> None:
            case.call_and_validate(checks=CHECKS)

        try:
            keeps_to_it()
        except Unsatisfiable:  # without parameters there is nothing to do wrong
            assert mode is schemathesis.GenerationMode.NEGATIVE and not operation.body


def test_every_post_says_how_it_streams_and_fails(api: TestClient) -> None:
    paths = api.get("/openapi.json").json()["paths"]
    posts = {path: item["post"] for path, item in paths.items() if "post" in item}
    assert len(posts) == 7
    for path, operation in posts.items():
        assert {"400", "401", "403", "404", "429", "503"} <= operation["responses"].keys(), path
        answer = operation["responses"]["200"]["content"]
        assert "application/json" in answer
        streams = "hybrid" not in path and "count_tokens" not in path
        assert ("text/event-stream" in answer) == streams, path
