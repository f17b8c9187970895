"""The page at `/docs`: one HTML file that asks this server alone."""

import re
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mlimg.runtime.server.service import Service

_INLINE: Final = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


def routes(service: Service) -> Sequence[BaseRoute]:
    """The page, and the same at `/`, where people and simple probes begin."""
    if not service.settings.docs:
        return []
    html = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": policy(html),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }

    async def page(_request: Request) -> Response:
        return Response(html, headers=headers, media_type="text/html")

    return [Route(path, page) for path in ("/docs", "/")]


def policy(html: str) -> str:
    """A policy by which nothing runs but the page's own style and script, and nothing is asked but its own host."""
    allowed = [
        f"{kind}-src 'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"
        for kind, content in _INLINE.findall(html)
    ]
    others = ["connect-src 'self'", "img-src data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"]
    return "; ".join(["default-src 'none'", *allowed, *others])
