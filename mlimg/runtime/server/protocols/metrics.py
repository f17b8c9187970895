"""`/metrics`, for Prometheus."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mlimg.runtime.server.metrics import CONTENT_TYPE
from mlimg.runtime.server.service import Service


def routes(service: Service) -> Sequence[BaseRoute]:
    """The route."""

    async def metrics(_request: Request) -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE)

    return [Route("/metrics", metrics)]
