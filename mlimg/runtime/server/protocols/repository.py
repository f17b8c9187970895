"""Triton's model repository extension over REST: load and unload, where `MLIMG_REPOSITORY_API` allows them.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mlimg.runtime.server.body import parse_object, text
from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.http import JSON
from mlimg.runtime.server.service import Service
from mlimg.runtime.server.tensors import shown

_BODY_LIMIT_BYTES: Final = 2**20


def routes(service: Service) -> Sequence[BaseRoute]:
    """The protocol's routes; none where models are not to be loaded by request."""
    if not service.settings.repository_api:
        return []
    protocol = _Repository(service)
    model = "/v2/repository/models/{model}"
    return [
        Route(f"{model}/load", protocol.load, methods=["POST"]),
        Route(f"{model}/unload", protocol.unload, methods=["POST"]),
    ]


class _Repository:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def load(self, request: Request) -> Response:
        parameters = await self._parameters(request, {"model", "uri"})
        if len(parameters) > 1:
            raise HTTPException(400, "`model` and `uri` mean the same: give one of them")
        try:
            reference = next((text(value, f"`{name}`") for name, value in parameters.items()), None)
        except InputError as error:
            raise HTTPException(400, str(error)) from error
        model = await self._service.repository.load(request.path_params["model"], reference)
        return JSON(model.to_json())

    async def unload(self, request: Request) -> Response:
        # Triton's clients send it; no model here depends on another.
        await self._parameters(request, {"unload_dependents"})
        self._service.repository.unload(request.path_params["model"])
        return JSON({})

    async def _parameters(self, request: Request, known: Collection[str]) -> Mapping[str, Any]:
        body = await self._service.read(request.scope, request.receive, _BODY_LIMIT_BYTES)
        try:
            parameters = parse_object(body).get("parameters", {}) if body else {}
        except InputError as error:
            raise HTTPException(400, str(error)) from error
        if not isinstance(parameters, dict):
            raise HTTPException(400, "`parameters` must be an object")
        for name in parameters.keys() - known:
            raise HTTPException(400, f"unknown parameter `{shown(name)}`: known are {', '.join(sorted(known))}")
        return parameters
