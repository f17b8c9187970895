"""KServe V1 over REST.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol
"""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mlimg.runtime.server.http import JSON
from mlimg.runtime.server.protocols.endpoint import Predict
from mlimg.runtime.server.protocols.instances import InstancesCodec
from mlimg.runtime.server.service import Service


def routes(service: Service) -> Sequence[BaseRoute]:
    """The protocol's routes."""

    async def models(_request: Request) -> Response:
        return JSON({"models": [model.name for model in service.state.models if model.name]})

    async def model(request: Request) -> Response:
        return JSON({"name": service.runner(request.path_params["model"]).metadata.name, "ready": True})

    predict = Predict(service, lambda _scope: InstancesCodec(), "v1")
    return [
        Route("/v1/models/{model}:predict", predict, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{model}", model),
    ]
