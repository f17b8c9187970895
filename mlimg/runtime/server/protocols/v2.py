"""Open Inference Protocol V2 over REST, JSON tensors.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Scope

from mlimg.runtime.server.body import parse_object, text
from mlimg.runtime.server.errors import InputError, PredictionError
from mlimg.runtime.server.exchange import Codec, Query, Reply
from mlimg.runtime.server.http import JSON, RETRY, header
from mlimg.runtime.server.metadata import Arrays, ModelMetadata
from mlimg.runtime.server.protocols.endpoint import Predict
from mlimg.runtime.server.service import Service
from mlimg.runtime.server.state import ModelState
from mlimg.runtime.server.tensors import decode, encode, shown, wire_datatypes

MAX_TENSORS: Final = 256
# Each asks for tensors outside the JSON; ignoring one would give an answer of the wrong form.
_BINARY: Final = frozenset(
    {
        "binary_data",
        "binary_data_size",
        "binary_data_output",
        "shared_memory_region",
        "shared_memory_offset",
        "shared_memory_byte_size",
        "classification",
    }
)


def routes(service: Service) -> Sequence[BaseRoute]:
    """The protocol's routes."""
    protocol = _V2(service)
    model = "/v2/models/{model}"
    version = model + "/versions/{version}"
    predict = Predict(service, _codec)
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
        return JSON({"name": f"mlimg-{facts.template}", "version": facts.template_version, "extensions": []})

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
        body = await request.body()
        try:
            only_ready = bool(body) and parse_object(body).get("ready") is True
        except InputError as error:
            raise HTTPException(400, str(error)) from error
        entries = [self._entry(model) for model in self._service.state.models if model.name]
        return JSON([entry for entry in entries if entry["state"] == "READY" or not only_ready])

    def _entry(self, model: ModelState) -> dict[str, str]:
        """A model as the index lists it."""
        version = (model.runner and model.runner.metadata.version) or ""
        reason = "draining" if self._service.state.draining else model.reason
        state = "UNAVAILABLE" if reason else "READY"
        return {"name": model.name, "version": version, "state": state, "reason": reason}

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
    if header(scope, b"inference-header-content-length"):
        raise HTTPException(400, "binary tensors are not supported: send the tensors as JSON")
    return V2Codec()


@dataclass(frozen=True, slots=True)
class V2Codec:
    """Inference requests."""

    def read(self, _model: ModelMetadata, body: bytes) -> Query:
        """Read a request; its note is its `id`. Raises InputError."""
        request = parse_object(body)
        _check_parameters(request, "the request")
        identity = text(request["id"], "`id`") if "id" in request else None
        return Query(_inputs(request.get("inputs")), _wanted(request.get("outputs", [])), identity)

    def write(self, model: ModelMetadata, query: Query, tensors: Arrays) -> Reply:
        """Write the answer. Raises PredictionError."""
        response: dict[str, Any] = {"model_name": model.name}
        if model.version is not None:
            response["model_version"] = model.version
        if query.note is not None:
            response["id"] = query.note
        try:
            datatypes = wire_datatypes(tensors, model.outputs)
            response["outputs"] = [encode(name, array, datatypes[name]) for name, array in tensors.items()]
        except ValueError as error:
            raise PredictionError("an output holds bytes that are not UTF-8, which JSON cannot carry") from error
        return Reply(json.dumps(response, allow_nan=False).encode())


def _inputs(tensors: object) -> Arrays:
    arrays: Arrays = {}
    for name, tensor in _named(tensors, "inputs"):
        if "data" not in tensor:
            raise InputError(f"tensor `{shown(name)}` has no `data`")
        arrays[name] = decode(name, tensor.get("datatype"), tensor.get("shape"), tensor["data"])
    if not arrays:
        raise InputError("`inputs` is empty")
    return arrays


def _wanted(tensors: object) -> list[str]:
    return [name for name, _ in _named(tensors, "outputs")]


def _named(tensors: object, what: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The tensors of a list, each with its name; twice the same name is refused."""
    if not isinstance(tensors, list) or not all(isinstance(tensor, dict) for tensor in tensors):
        raise InputError(f"`{what}` must be a list of tensors")
    if len(tensors) > MAX_TENSORS:
        raise InputError(f"`{what}` has {len(tensors)} tensors: at most {MAX_TENSORS} are taken")
    found: dict[str, Mapping[str, Any]] = {}
    for tensor in tensors:
        name = text(tensor.get("name"), f"the name of a tensor of `{what}`")
        if name in found:
            raise InputError(f"tensor `{shown(name)}` is in `{what}` twice")
        _check_parameters(tensor, f"tensor `{shown(name)}`")
        found[name] = tensor
    return list(found.items())


def _check_parameters(holder: Mapping[str, Any], what: str) -> None:
    parameters = holder.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InputError(f"`parameters` of {what} must be an object")
    for name in _BINARY & parameters.keys():
        if parameters[name] is not False:  # clients send `binary_data: false` to ask for JSON
            raise InputError(f"`{name}` of {what} is not supported: send and take the tensors as JSON")
