"""What clouds call a container by: SageMaker, Azure ML, and Vertex AI, which names its routes itself.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements
"""

from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mlimg.runtime.server.http import RETRY
from mlimg.runtime.server.protocols import invocations
from mlimg.runtime.server.service import Service


def routes(service: Service) -> Sequence[BaseRoute]:
    """The routes of all of them."""

    async def health(_request: Request) -> Response:
        if not service.state.ready:
            raise HTTPException(503, f"not ready: {service.state.phase.value}", RETRY)
        return Response()

    predict = invocations.predict(service)
    ours = service.settings.routes
    return [
        *(Route(path, predict, methods=["POST"]) for path in ("/invocations", "/score", ours.predict) if path),
        *(Route(path, health) for path in ("/ping", ours.health) if path),
    ]
