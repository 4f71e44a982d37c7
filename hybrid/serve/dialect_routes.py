"""The routes of OpenAI's and Anthropic's APIs: each reads its body and hands it on."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from hybrid.serve import chat, completions, messages, responses
from hybrid.serve.errors import JsonResponse
from hybrid.serve.openapi import ANTHROPIC_ERRORS, OPENAI_ERRORS, answers
from hybrid.serve.replies import Dialect, reply, service_of, translated, unless_gone

router = APIRouter()

CHAT = Dialect(chat.write, chat.ChatStream, chat.PARAMETERS)
COMPLETIONS = Dialect(completions.write, completions.CompletionStream, completions.PARAMETERS)
RESPONSES = Dialect(responses.write, responses.ResponseStream, responses.PARAMETERS)
MESSAGES = Dialect(messages.write, messages.MessageStream, messages.PARAMETERS)


@router.post(
    "/v1/chat/completions",
    responses={**OPENAI_ERRORS, **answers(chat.ChatCompletion)},
    tags=["OpenAI"],
)
async def chat_completions(body: chat.ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    most = service_of(request).settings.max_choices
    return await reply(request, CHAT, lambda: chat.read(body, request.headers, most))


@router.post(
    "/v1/completions",
    responses={**OPENAI_ERRORS, **answers(completions.Completion)},
    tags=["OpenAI"],
)
async def create_completion(body: completions.CompletionRequest, request: Request) -> Response:
    """Answer a prompt, or fill in what is between it and a suffix."""
    most = service_of(request).settings.max_choices
    return await reply(request, COMPLETIONS, lambda: completions.read(body, request.headers, most))


@router.post(
    "/v1/responses",
    responses={**OPENAI_ERRORS, **answers(responses.ResponseObject)},
    tags=["OpenAI"],
)
async def create_response(body: responses.ResponsesRequest, request: Request) -> Response:
    """Answer an input; nothing is stored."""
    return await reply(request, RESPONSES, lambda: responses.read(body, request.headers))


@router.post(
    "/v1/messages",
    responses={**ANTHROPIC_ERRORS, **answers(messages.AnthropicMessage)},
    tags=["Anthropic"],
)
async def create_message(body: messages.MessagesRequest, request: Request) -> Response:
    """Answer a conversation."""
    return await reply(request, MESSAGES, lambda: messages.read(body, request.headers))


@router.post(
    "/v1/messages/count_tokens",
    responses=ANTHROPIC_ERRORS,
    response_model=messages.TokenCount,
    tags=["Anthropic"],
)
async def count_tokens(body: messages.CountRequest, request: Request) -> Response:
    """Count a conversation's tokens."""
    call = translated(MESSAGES.parameters, lambda: messages.read_count(body))
    service = service_of(request)
    tokens = await unless_gone(request, service.count_tokens(call, MESSAGES.parameters))
    return JsonResponse({"input_tokens": tokens})
