"""What a server says of itself: models, health, readiness, version, and numbers for Prometheus."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from hybrid import __version__
from hybrid.serve.access import key_of
from hybrid.serve.errors import ApiError, JsonResponse
from hybrid.serve.openapi import OPENAI_ERRORS
from hybrid.serve.policies import DEFAULT_MODEL
from hybrid.serve.replies import service_of
from hybrid.serve.service import Service

router = APIRouter(tags=["status"])


@router.get("/health")
async def health() -> dict[str, str]:
    """Whether the process is alive."""
    return {"status": "alive"}


@router.get("/ready", responses={503: OPENAI_ERRORS[503]})
async def ready(request: Request) -> dict[str, str]:
    """Whether requests can be answered now; 503 while models load and once the server stops."""
    service_of(request).refuse_if_not_ready()
    return {"status": "ready"}


@router.get("/version", responses={401: OPENAI_ERRORS[401]})
async def version() -> dict[str, str]:
    """hybrid's."""
    return {"version": __version__}


@router.get("/metrics", responses={401: OPENAI_ERRORS[401], 200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Numbers in Prometheus' text format."""
    text, media_type = request.app.state.metrics.render()
    return Response(text, media_type=media_type)


@router.get("/v1/models", responses={401: OPENAI_ERRORS[401]})
async def models(request: Request) -> dict[str, Any]:
    """The policies that may be named as `model`."""
    service, key = service_of(request), key_of(request)
    names = [DEFAULT_MODEL, *service.policies]
    allowed = [name for name in names if _may(service, key.policies, name)]
    return {"object": "list", "data": [_model(service, name) for name in allowed]}


@router.get("/v1/models/{model}", responses={404: OPENAI_ERRORS[404], 401: OPENAI_ERRORS[401]})
async def model(model: str, request: Request) -> Response:
    """One policy."""
    service = service_of(request)
    service.policies.find(model)
    if not _may(service, key_of(request).policies, model):
        raise ApiError(404, f"model: {model[:80]!r} is not served here", "model_not_found", "model")
    return JsonResponse(_model(service, model))


def _may(service: Service, policies: tuple[str, ...] | None, name: str) -> bool:
    return policies is None or service.policies[name].name in policies


def _model(service: Service, name: str) -> dict[str, Any]:
    """A policy as OpenAI's clients list models, with what it can do."""
    hybrid, sha = service.policies[name].current()
    policy = hybrid.policy
    return {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "hybrid",
        "hybrid": {
            "description": policy.description,
            "policy_sha": sha,
            "tasks": [*policy.tasks],
            "budget_s": policy.defaults.budget,
            "effort": {**policy.effort},
            "max_new_tokens": policy.defaults.max_new_tokens,
            "capabilities": {
                "drafts": policy.models.drafter is not None,
                "infill": policy.models.drafter is not None,
                "refines": policy.models.refiner is not None,
                "streaming": True,
                "stop": True,
                "seed": True,
                "tools": False,
                "structured_output": False,
                "vision": False,
            },
        },
    }
