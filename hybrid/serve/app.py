"""`create_app`: the server as an ASGI application.

    uvicorn.run(create_app("balanced"))

`hybrid serve` is this with a server around it. The models load while the application starts;
until they have, `/ready` and every request say 503.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from hybrid import __version__
from hybrid.api import Hybrid
from hybrid.errors import HybridError
from hybrid.policies.schema import Policy
from hybrid.serve import dialect_routes, hybrid_routes, playground_routes, status_routes
from hybrid.serve.access import AccessControl, Key
from hybrid.serve.bounds import BodyLimit
from hybrid.serve.errors import ApiError, api_error, error_response
from hybrid.serve.logs import log_choice
from hybrid.serve.metrics import Metrics
from hybrid.serve.policies import serve_hybrid, serve_policies
from hybrid.serve.service import Service
from hybrid.serve.settings import Settings
from hybrid.serve.tracing import tracer

log = logging.getLogger("hybrid.serve")


def create_app(
    policy: str | Path | Policy | Hybrid | Sequence[str | Path | Policy] = (),
    *,
    keys: Sequence[Key] = (),
    settings: Settings | None = None,
    workers: int = 0,
) -> FastAPI:
    """The application for one policy, several for the same models, or a `Hybrid`.

    The first policy answers requests for the model `hybrid`, each answers under its own name. With
    none, `balanced` is the first, and the other presets for the same models follow. `keys` are
    those that may ask; with none everybody may. Raises PolicyError and RequestError.
    """
    settings = settings or Settings()
    if isinstance(policy, Hybrid):
        policies = serve_hybrid(policy)
    else:
        given = [policy] if isinstance(policy, str | Path | Policy) else [*policy]
        policies = serve_policies(given, workers)
    service = Service(policies, settings, workers)
    metrics = Metrics(service)
    service.observers += [metrics.observe, log_choice]
    if (trace := tracer()) is not None:
        service.observers.append(trace)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            tasks.start_soon(_load, service)
            stack.push_async_callback(anyio.to_thread.run_sync, service.close)
            yield
            service.is_draining = True

    app = FastAPI(
        title="hybrid",
        version=__version__,
        summary="Draft with a diffusion model, refine with an autoregressive one, in time.",
        root_path=settings.root_path,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service, app.state.metrics = service, metrics
    for routes in (dialect_routes, hybrid_routes, status_routes, playground_routes):
        app.include_router(routes.router)
    for kind in (ApiError, HybridError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _refuse)
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(AccessControl, keys=keys)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-hybrid-decision-id", "x-hybrid-ignored", "retry-after"],
        )
    return app


async def _load(service: Service) -> None:
    try:
        await anyio.to_thread.run_sync(service.load)
    except Exception as error:  # /ready and every request say so
        log.error("the models did not load: %s", error)


async def _refuse(request: Request, error: Exception) -> Response:
    return error_response(request.url.path, api_error(error))
