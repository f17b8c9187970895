"""What each method of the service answers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.exceptions import HTTPException

from mlimg.runtime.server.exchange import Call
from mlimg.runtime.server.grpc_v2.codec import GrpcCodec, model_of
from mlimg.runtime.server.grpc_v2.messages import MESSAGES
from mlimg.runtime.server.service import Service
from mlimg.runtime.server.tensors import TensorSpec
from mlimg.runtime.server.tracing import RequestContext

INFERENCE: Final = "inference.GRPCInferenceService"
HEALTH: Final = "grpc.health.v1.Health"
_SERVING, _NOT_SERVING = 1, 2
_CODEC: Final = GrpcCodec()


@dataclass(slots=True)
class Asked:
    """A request: who asks, and, once it is known, which model."""

    context: RequestContext
    model: str = ""


Answer = Callable[[Asked, Any], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Method:
    """A method but `ModelInfer`; `while_draining` tells whether it is answered then, too."""

    request: str
    response: str
    answer: Answer
    while_draining: bool = False


class Servicer:
    """The methods over a service. Each raises HTTPException, with the status that the same has over REST."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def methods(self) -> Mapping[str, Mapping[str, Method]]:
        """The methods of each gRPC service, but for `ModelInfer`."""

        def method(name: str, answer: Answer, *, while_draining: bool = False) -> Method:
            return Method(f"{name}Request", f"{name}Response", answer, while_draining)

        ours = {
            "ServerLive": method("ServerLive", self._server_live, while_draining=True),
            "ServerReady": method("ServerReady", self._server_ready, while_draining=True),
            "ModelReady": method("ModelReady", self._model_ready, while_draining=True),
            "ServerMetadata": method("ServerMetadata", self._server_metadata),
            "ModelMetadata": method("ModelMetadata", self._model_metadata),
            "RepositoryIndex": method("RepositoryIndex", self._index),
        }
        if self._service.settings.repository_api:
            ours["RepositoryModelLoad"] = method("RepositoryModelLoad", self._load)
            ours["RepositoryModelUnload"] = method("RepositoryModelUnload", self._unload)
        return {INFERENCE: ours, HEALTH: {"Check": method("HealthCheck", self._health, while_draining=True)}}

    async def infer(self, asked: Asked, body: bytes) -> bytes:
        """Let a model answer a serialized request. Raises HTTPException, InputError."""
        runner = self._service.runner(*model_of(body))
        asked.model = runner.metadata.name
        call = Call(_CODEC, body, asked.context)
        # Nobody need look whether the client is gone: this coroutine is cancelled then.
        reply = await self._service.call(asked.context.request_id, runner, call, asyncio.Event().wait)
        return reply.body

    async def _server_live(self, _asked: Asked, _request: Any) -> Any:
        return {"live": True}

    async def _server_ready(self, _asked: Asked, _request: Any) -> Any:
        return {"ready": self._service.state.ready}

    async def _model_ready(self, _asked: Asked, request: Any) -> Any:
        try:
            self._service.runner(request.name, request.version or None)
        except HTTPException as error:
            if error.status_code == 503:
                return {"ready": False}
            raise
        return {"ready": not self._service.state.draining}

    async def _server_metadata(self, _asked: Asked, _request: Any) -> Any:
        facts = self._service.facts
        return {"name": facts.server_name, "version": facts.template_version, "extensions": []}

    async def _model_metadata(self, asked: Asked, request: Any) -> Any:
        model = self._service.runner(request.name, request.version or None).metadata
        asked.model = model.name
        return {
            "name": model.name,
            "versions": [model.version] if model.version else [],
            "platform": model.platform,
            "inputs": _tensors(model.inputs),
            "outputs": _tensors(model.outputs),
        }

    async def _index(self, _asked: Asked, request: Any) -> Any:
        return {"models": self._service.state.index(only_ready=request.ready)}

    async def _load(self, _asked: Asked, request: Any) -> Any:
        parameters = request.parameters
        for name in parameters:
            if name not in ("model", "uri") or len(parameters) > 1:
                raise HTTPException(400, "only `model` or `uri` is taken as parameter: what to load")
        reference = next((value.string_param for value in parameters.values()), None)
        if reference == "":
            raise HTTPException(400, "the reference to a model must be a text")
        await self._service.repository.load(request.model_name, reference)
        return {}

    async def _unload(self, _asked: Asked, request: Any) -> Any:
        self._service.repository.unload(request.model_name)
        return {}

    async def _health(self, _asked: Asked, request: Any) -> Any:
        if request.service not in ("", INFERENCE):
            raise HTTPException(404, "unknown service")
        return {"status": _SERVING if self._service.state.ready else _NOT_SERVING}


def _tensors(specs: Sequence[TensorSpec]) -> list[Any]:
    return [
        MESSAGES["TensorMetadata"](name=spec.name, datatype=spec.datatype or "", shape=spec.shape) for spec in specs
    ]
