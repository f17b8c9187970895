"""Open Inference Protocol V2 over REST: its routes.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Scope

from mlimg.runtime.server.body import parse_object
from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.exchange import Codec
from mlimg.runtime.server.http import JSON, RETRY, header
from mlimg.runtime.server.metadata import ModelMetadata
from mlimg.runtime.server.protocols.endpoint import Predict
from mlimg.runtime.server.protocols.v2_codec import HEADER_LENGTH, V2Codec
from mlimg.runtime.server.service import Service

_PLAIN: Final = V2Codec()
_INDEX_LIMIT_BYTES: Final = 2**20  # it is read in the event loop


def routes(service: Service) -> Sequence[BaseRoute]:
    """The protocol's routes."""
    protocol = _V2(service)
    model = "/v2/models/{model}"
    version = model + "/versions/{version}"
    predict = Predict(service, _codec, "v2")
    return [
        # First, since it is asked most and routes are tried in turn.
        *(Route(f"{path}/infer", predict, methods=["POST"]) for path in (model, version)),
        Route("/v2", protocol.server),
        Route("/v2/health/live", protocol.live),
        Route("/v2/health/ready", protocol.ready),
        Route("/v2/repository/index", protocol.index, methods=["POST"]),
        *(Route(path, protocol.metadata) for path in (model, version)),
        *(Route(f"{path}/ready", protocol.model_ready) for path in (model, version)),
    ]


class _V2:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def server(self, _request: Request) -> Response:
        facts = self._service.facts
        extensions = ["binary_tensor_data"]
        if self._service.settings.repository_api:
            extensions.append("model_repository")
        return JSON({"name": facts.server_name, "version": facts.template_version, "extensions": extensions})

    async def live(self, _request: Request) -> Response:
        return JSON({"live": True})

    async def ready(self, _request: Request) -> Response:
        state = self._service.state
        return _readiness(state.to_json(), ready=state.ready)

    async def model_ready(self, request: Request) -> Response:
        model = self._model(request)
        ready = not self._service.state.draining
        return _readiness({"name": model.name, "ready": ready}, ready=ready)

    async def index(self, request: Request) -> Response:
        body = await self._service.read(request.scope, request.receive, _INDEX_LIMIT_BYTES)
        try:
            only_ready = bool(body) and parse_object(body).get("ready") is True
        except InputError as error:
            raise HTTPException(400, str(error)) from error
        return JSON(self._service.state.index(only_ready=only_ready))

    async def metadata(self, request: Request) -> Response:
        model = self._model(request)
        return JSON(
            {
                "name": model.name,
                "versions": [model.version] if model.version else [],
                "platform": model.platform,
                "inputs": [spec.to_json() for spec in model.inputs],
                "outputs": [spec.to_json() for spec in model.outputs],
            }
        )

    def _model(self, request: Request) -> ModelMetadata:
        return self._service.runner(request.path_params["model"], request.path_params.get("version")).metadata


def _readiness(value: Mapping[str, Any], *, ready: bool) -> Response:
    return JSON(value) if ready else JSON(value, 503, RETRY)


def _codec(scope: Scope) -> Codec:
    length = header(scope, HEADER_LENGTH.encode())
    if not length:
        return _PLAIN
    if not (length.isascii() and length.isdigit()) or len(length) > 18:
        raise HTTPException(400, "Inference-Header-Content-Length must be the length of the JSON in bytes")
    return V2Codec(int(length))
