"""`hybrid serve`: policies behind an HTTP address that OpenAI's and Anthropic's clients know."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.markup import escape

from hybrid.cli.render import printable
from hybrid.cli.run import Flag
from hybrid.cli.terminal import Terminal
from hybrid.deadline import parse_duration
from hybrid.errors import CapabilityError

if TYPE_CHECKING:
    from hybrid.serve.access import Key

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    *policies: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 0,
    keys: Path | None = None,
    drain: str | None = None,
    max_in_flight: int = 256,
    max_connections: int = 1024,
    max_body_bytes: int = 2 << 20,
    max_header_bytes: int = 32 << 10,
    cors_origin: tuple[str, ...] = (),
    root_path: str = "",
    log_json: Annotated[Flag, Parameter(name="--log-json")] = False,
) -> None:
    """Answer OpenAI's and Anthropic's clients over HTTP.

    Parameters
    ----------
    policies
        Presets or policy files for the same models. The first answers for the model `hybrid`, each
        for its own name. Left out: balanced, and the other presets for the embedded pair.
    host
        The address to listen at; other machines reach 0.0.0.0, so set keys first.
    port
        The port; 0 takes a free one.
    workers
        Processes that hold the models, instead of this one.
    keys
        A YAML file with API keys; HYBRID_API_KEYS=name=key,name=key adds others.
    drain
        How long requests may run on after SIGTERM; the longest budget of the policies if left out.
    max_in_flight
        Requests that are answered at once; the next one is refused with 429.
    max_connections
        Open connections; the next one is refused with 503.
    max_body_bytes
        Longest body of a request.
    max_header_bytes
        Longest header of a request.
    cors_origin
        A web page's origin that may ask from a browser; may be given several times.
    root_path
        The path under which a proxy shows the server, such as /hybrid.
    log_json
        Write logs as JSON, one object a line.
    """
    try:
        from hybrid.serve import Settings, create_app
        from hybrid.serve.logs import log_to_stderr
        from hybrid.serve.run import serve as run
    except ModuleNotFoundError as error:
        missing = f"needs {error.name}: pip install 'hybrid-gemma[serve]'"
        raise CapabilityError("hybrid serve", "this installation", missing) from None
    settings = Settings(
        max_body_bytes=max_body_bytes,
        max_header_bytes=max_header_bytes,
        max_in_flight=max_in_flight,
        max_connections=max_connections,
        drain_s=None if drain is None else parse_duration(drain, "--drain"),
        cors_origins=cors_origin,
        root_path=root_path.rstrip("/"),
    )
    log_to_stderr(as_json=log_json)
    given = _keys(keys)
    app = create_app(policies, keys=given, settings=settings, workers=workers)
    if not given and host not in _LOOPBACK:
        logging.getLogger("hybrid.serve").warning(
            "no keys are set: whoever reaches %s may ask", host
        )
    run(app, host, port, lambda url: _greet(url + settings.root_path, bool(given)))


def _keys(file: Path | None) -> list["Key"]:
    from hybrid.serve.access import KEYS_VARIABLE, read_key_file, read_key_variable

    keys = read_key_file(file, os.environ) if file else []
    return [*keys, *read_key_variable(os.environ.get(KEYS_VARIABLE, ""))]


def _greet(url: str, needs_key: bool) -> None:
    """The address, a line to try it with, and the playground."""
    key = " -H 'authorization: Bearer KEY'" if needs_key else ""
    body = '{"messages": [{"role": "user", "content": "sort up: 4 8 1 9 3"}]}'
    console = Terminal()
    console.print(f"[bold]hybrid[/bold] answers at {escape(url)}/v1 and {escape(url)}")
    line = f"curl {url}/v1/chat/completions{key} -H 'content-type: application/json' -d '{body}'"
    console.print(f"try         {escape(printable(line))}", soft_wrap=True)
    console.print(f"playground  {escape(url)}/", soft_wrap=True)
    console.file.flush()
