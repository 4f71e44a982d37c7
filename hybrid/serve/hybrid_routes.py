"""hybrid's own routes: a decision without an answer, and templates with blanks."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from hybrid.serialization import finite, record
from hybrid.serve import chat
from hybrid.serve.access import key_of
from hybrid.serve.call import Answer, Call, Extension
from hybrid.serve.errors import JsonResponse
from hybrid.serve.extension import HybridFields, HybridReport, merge
from hybrid.serve.fields import (
    Seed,
    Temperature,
    TokenLimit,
    Turns,
    conversation,
    sampling,
)
from hybrid.serve.openapi import OPENAI_ERRORS
from hybrid.serve.replies import (
    Dialect,
    decision_headers,
    reply,
    service_of,
    translated,
    unless_gone,
)
from hybrid.types import Effort

router = APIRouter(prefix="/v1/hybrid", tags=["hybrid"])


class ExplainRequest(BaseModel):
    """A request whose decision is wanted."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(default="hybrid", description="A policy's name, or hybrid.", max_length=256)
    messages: Turns
    max_tokens: TokenLimit | None = None
    temperature: Temperature | None = None
    reasoning_effort: Effort | None = None
    seed: Seed | None = None
    hybrid: HybridFields | None = None


class FillRequest(ExplainRequest):
    """A template to fill in; the messages say what is asked."""

    template: str = Field(description="An answer with blanks, <blank:N> of N tokens.")


class Explanation(BaseModel):
    """A decision: the plan, and what was rejected."""

    model: str
    policy_sha: str
    plan: dict[str, Any]


class Filled(BaseModel):
    """A filled template."""

    model: str
    text: str
    usage: chat.Usage
    hybrid: HybridReport


def _read(body: ExplainRequest, headers: Mapping[str, str], endpoint: str) -> Call:
    options = merge(
        sampling(body.temperature, None, body.seed, body.max_tokens),
        body.hybrid,
        body.reasoning_effort,
        headers,
    )
    if isinstance(body, FillRequest):
        options["infill"] = body.template
    extension = body.hybrid.extension if body.hybrid else Extension()
    prompts = (conversation(body.messages),)
    return Call(endpoint, body.model, prompts, options, extension=extension)


def _write_filled(answer: Answer, extension: Extension) -> dict[str, Any]:
    choice = answer.choices[0]
    return {
        "model": answer.head.model,
        "text": choice.text,
        "usage": chat.usage(answer),
        "hybrid": chat.hybrid_report(choice, answer.head, extension),
    }


FILL = Dialect(_write_filled, chat.ChatStream, {**chat.PARAMETERS, "infill": "template"})


@router.post("/explain", responses=OPENAI_ERRORS, response_model=Explanation)
async def explain(body: ExplainRequest, request: Request) -> Response:
    """What would be decided; no model is run."""
    service = service_of(request)
    call = translated(chat.PARAMETERS, lambda: _read(body, request.headers, "explain"))
    head = service.head(call)
    key_of(request).check_policy(head.model)
    plan = await unless_gone(request, service.explain(call, chat.PARAMETERS))
    values = {"model": head.model, "policy_sha": head.policy_sha, "plan": plan and record(plan)}
    return JsonResponse(finite(values), headers=decision_headers(call, head))


@router.post("/fill", responses=OPENAI_ERRORS, response_model=Filled)
async def fill(body: FillRequest, request: Request) -> Response:
    """Fill in the blanks of a template."""
    return await reply(request, FILL, lambda: _read(body, request.headers, "fill"))
