"""The protocols a server speaks, in the order in which their routes are looked through."""

from collections.abc import Callable, Sequence
from typing import Final

from starlette.routing import BaseRoute

from mlimg.runtime.server.protocols import metrics, openapi, page, platforms, repository, v1, v2
from mlimg.runtime.server.service import Service

PROTOCOLS: Final[Sequence[Callable[[Service], Sequence[BaseRoute]]]] = (
    v2.routes,
    platforms.routes,
    v1.routes,
    metrics.routes,
    repository.routes,
    openapi.routes,
    page.routes,  # after the platforms, one of which may name `/` its own
)
