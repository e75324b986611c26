"""The page at `/`: its files, and the headers that keep it from talking to anybody but this server."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_SCRIPTS = ("main", "ask", "dom", "search", "compare", "vectors", "status")
_FILES = ("style.css", "icon.svg", *(f"{name}.js" for name in _SCRIPTS))
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_HEADERS = {
    # Nothing comes from elsewhere, nothing is inline, and no string becomes markup.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # a newer version of the package has newer files
}

PATHS = {"/": "index.html", **{f"/page/{name}": name for name in _FILES}}


def routes() -> list[Route]:
    """A route for each file."""
    return [Route(path, _file, methods=["GET"]) for path in PATHS]


async def _file(request: Request) -> Response:
    name = PATHS[request.scope["path"]]
    body = files(__package__).joinpath("page", name).read_bytes()
    return Response(body, headers=_HEADERS, media_type=_TYPES[name.rpartition(".")[2]])
