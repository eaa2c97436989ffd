"""The files of a page: all of them are in memory and are served under fixed names."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prefcast.service.refusals import Refusal

__all__ = ["file_routes"]

_PAGE = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
}


def file_routes(named: Mapping[str, str], made: Mapping[str, tuple[str, str]] | None = None) -> list[Route]:
    """Every file of the page under /static, those in `named` under a path of their own as well (path -> file), and texts that
    are `made` when the server starts (path -> ending and text)."""
    files = {
        path.name: _file(path.suffix, path.read_bytes())
        for path in sorted(_PAGE.iterdir())
        if path.suffix in (*_TYPES, ".svg", ".png", ".woff2")
    }
    fixed = {path: files[name] for path, name in named.items()}
    fixed |= {path: _file(ending, text.encode()) for path, (ending, text) in (made or {}).items()}

    async def at_fixed_path(request: Request) -> Response:
        return _served(fixed[request.scope["path"]], request)

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files:
            raise Refusal("not_found", "there is no such file")
        return _served(files[name], request)

    return [*(Route(path, at_fixed_path) for path in fixed), Route("/static/{name}", static)]


def _file(suffix: str, data: bytes) -> tuple[bytes, str, str]:
    """A file's bytes, type and tag."""
    kind = _TYPES.get(suffix) or mimetypes.types_map.get(suffix, "application/octet-stream")
    return data, kind, f'"{sha256(data).hexdigest()[:32]}"'


def _served(file: tuple[bytes, str, str], request: Request) -> Response:
    data, kind, tag = file
    headers = {"etag": tag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, headers={**headers, "content-type": kind})
