"""The playground at `/`: one page with its own script and style, and nothing from elsewhere."""

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@router.get("/")
async def page() -> Response:
    """The page."""
    return _file("index.html", "text/html")


@router.get("/playground.js")
async def script() -> Response:
    """Its script."""
    return _file("playground.js", "text/javascript")


@router.get("/playground.css")
async def style() -> Response:
    """Its style."""
    return _file("playground.css", "text/css")


def _file(name: str, media_type: str) -> Response:
    content = (files("hybrid.serve") / "playground" / name).read_bytes()
    return Response(content, media_type=f"{media_type}; charset=utf-8", headers=_HEADERS)
