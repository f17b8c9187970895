"""What this server can be asked, as an OpenAPI 3.1 document of the models that are up now.

https://spec.openapis.org/oas/v3.1.1
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mlimg.runtime.server.http import JSON
from mlimg.runtime.server.metadata import ModelMetadata
from mlimg.runtime.server.protocols import schemas
from mlimg.runtime.server.protocols.schemas import Schema
from mlimg.runtime.server.protocols.v2_codec import BINARY, HEADER_LENGTH
from mlimg.runtime.server.service import Service
from mlimg.runtime.server.state import ModelState

Item = dict[str, Any]
_ERRORS: Final[Mapping[int, str]] = {
    400: "The request is wrong; `error` says how.",
    404: "No such model or version.",
    408: "The body took too long.",
    413: "The body is too large.",
    415: "The body is of a kind that is not taken.",
    500: "The model failed on this request; the log has more under its id.",
    503: "The model is not ready, or all workers are busy and the queue is full: try again.",
    504: "No answer in time.",
}
# Of the routes that load and unload models.
_REPOSITORY_ERRORS: Final[Mapping[int, str]] = {
    403: "That reference may not be loaded.",
    409: "The model is being loaded, has another name, or is not the one in the image.",
    422: "The version cannot be loaded or served, or is over a limit.",
    502: "Registry or store refuse, or send what is not its digest.",
    507: "No room, or no folder that can be written.",
}
_JSON: Final = "application/json"
_LENGTH: Final[Item] = {
    "description": "Bytes of JSON, which the bytes of binary tensors follow, in the tensors' order.",
    "schema": {"type": "integer", "minimum": 0},
}
_TEXT: Final[Schema] = {"type": "string"}
_REPOSITORY: Final = "/v2/repository/models/{model}/"
_V2: Final = "Open Inference Protocol V2"
_V1: Final = "KServe V1"
_PLATFORMS: Final = "Platforms"


@dataclass(frozen=True, slots=True)
class Ask:
    """A route that predicts: its bodies by media type, each a schema; an example of the JSON where there is one."""

    path: str
    protocol: str
    bodies: Mapping[str, Schema]
    answers: Mapping[str, Schema]
    example: Any = None


def routes(service: Service) -> Sequence[BaseRoute]:
    """The document's route."""

    async def openapi(_request: Request) -> Response:
        # Beside the event loop: of a model with thousands of columns it takes a good part of a second.
        written = await asyncio.to_thread(lambda: json.dumps(document(service), allow_nan=False).encode())
        return JSON(written, headers={"Cache-Control": "no-store"})

    return [Route("/openapi.json", openapi)] if service.settings.docs else []


def document(service: Service) -> dict[str, Any]:
    """The whole document; of models that are on their way it has no more than `x-mlimg` tells."""
    up = [model.runner.metadata for model in service.state.models if model.runner]
    paths = dict(_server_paths(service))
    components: dict[str, Schema] = {}
    for model in up:
        components |= {f"{model.name}.{kind}": make(model) for kind, make in _KINDS.items()}
        paths |= _model_paths(model)
        for ask in _asks(service, model, alone=len(service.state.models) == 1):
            paths.setdefault(ask.path, {"post": _predict(ask, model)})
        if model.version:
            versioned = f"{_v2_path(model)}/versions/{quote(model.version, safe='')}/infer"
            paths[versioned] = {"$ref": "#/paths/" + _pointer(f"{_v2_path(model)}/infer")}
    return {
        "openapi": "3.1.0",
        "info": {"title": service.facts.server_name, "version": service.facts.template_version},
        "tags": [{"name": "server"}, *({"name": model.name} for model in up if model.name != "server")],
        "paths": paths,
        "components": {
            "schemas": {"Error": _error_schema(), **components},
            "responses": {str(status): _error(status, text) for status, text in _errors(service).items()},
        },
        "x-mlimg": {
            "ready": service.state.ready,
            "phase": service.state.phase.value,
            "models": [_known(model) for model in service.state.models],
        },
    }


_KINDS: Final[Mapping[str, Callable[[ModelMetadata], Schema]]] = {
    "V2Request": schemas.v2_request,
    "V2Answer": schemas.v2_answer,
    "V1Request": schemas.v1_request,
    "V1Answer": schemas.v1_answer,
}


def _asks(service: Service, model: ModelMetadata, *, alone: bool) -> Iterator[Ask]:
    """The routes of each protocol that predict; a platform's have no name of a model in them."""
    v2, v2_answer, v1, v1_answer = ({"$ref": f"#/components/schemas/{model.name}.{kind}"} for kind in _KINDS)
    v2_example, v1_example = schemas.v2_example(model), schemas.v1_example(model)
    raw: dict[str, Schema] = {BINARY: {}}
    yield Ask(f"{_v2_path(model)}/infer", _V2, {_JSON: v2, **raw}, {_JSON: v2_answer, **raw}, v2_example)
    yield Ask(f"{_v1_path(model)}:predict", _V1, {_JSON: v1}, {_JSON: v1_answer}, v1_example)
    if alone:
        csv: dict[str, Schema] = {"text/csv": {"type": "string"}}
        bodies = {_JSON: {"anyOf": [v2, v1, {"type": "array"}]}, **csv}
        answers = {_JSON: {"anyOf": [v2_answer, v1_answer]}, **csv}
        for path in ("/invocations", "/score", service.settings.routes.predict):
            if path:
                yield Ask(path, _PLATFORMS, bodies, answers, v1_example or v2_example)


def _predict(ask: Ask, model: ModelMetadata) -> Item:
    bodies: dict[str, Item] = {media_type: {"schema": schema} for media_type, schema in ask.bodies.items()}
    if ask.example is not None:
        bodies[_JSON]["example"] = ask.example
    content = {media_type: {"schema": schema} for media_type, schema in ask.answers.items()}
    answer: Item = {"description": "The predictions.", "content": content}
    item: Item = {
        "tags": [model.name],
        "summary": f"Predict: {ask.protocol}",
        "requestBody": {"required": True, "content": bodies},
        "responses": {"200": answer, **_refused(*_ERRORS)},
    }
    if BINARY in ask.bodies:
        item["parameters"] = [{"name": HEADER_LENGTH, "in": "header", **_LENGTH}]
        answer["headers"] = {HEADER_LENGTH: _LENGTH}
    return item


def _server_paths(service: Service) -> Iterator[tuple[str, Item]]:
    yield "/v2", _get("server", "The server's name, version and extensions")
    yield "/v2/health/live", _get("server", "Whether the server runs")
    yield "/v2/health/ready", _get("server", "Whether the server answers, and how far it is", 503)
    yield "/v2/repository/index", {"post": _get("server", "The models and their states")["get"]}
    if service.settings.repository_api:
        reference = {"type": "object", "properties": dict.fromkeys(("model", "uri"), _TEXT), "maxProperties": 1}
        dependents = {"type": "object", "properties": {"unload_dependents": {"type": "boolean"}}}
        yield _REPOSITORY + "load", _change("Load a model, or switch to what its reference names now", reference)
        yield _REPOSITORY + "unload", _change("Unload a model", dependents)
    yield "/v1/models", _get("server", "The models' names")
    for path in ("/ping", service.settings.routes.health):
        if path:
            yield path, _get("server", "Whether the server answers", 503, media_type=None)
    yield "/metrics", _get("server", "Metrics for Prometheus", media_type="text/plain")


def _model_paths(model: ModelMetadata) -> dict[str, Item]:
    return {
        _v2_path(model): _get(model.name, "Inputs, outputs, versions", 503),
        f"{_v2_path(model)}/ready": _get(model.name, "Whether the model answers", 503),
        _v1_path(model): _get(model.name, "Whether the model answers", 503),
    }


def _get(tag: str, summary: str, *errors: int, media_type: str | None = _JSON) -> Item:
    found: Item = {"description": "The answer."}
    if media_type:
        found["content"] = {media_type: {}}
    return {"get": {"tags": [tag], "summary": summary, "responses": {"200": found, **_refused(*errors)}}}


def _change(summary: str, parameters: Schema) -> Item:
    """A route that changes which models there are; a body is not needed."""
    body = {"type": "object", "properties": {"parameters": parameters}}
    item: Item = _get("server", summary, 400, 404, 503, *_REPOSITORY_ERRORS)["get"]
    name = {"name": "model", "in": "path", "required": True, "schema": _TEXT}
    return {"post": {**item, "parameters": [name], "requestBody": {"content": {_JSON: {"schema": body}}}}}


def _errors(service: Service) -> Mapping[int, str]:
    return {**_ERRORS, **_REPOSITORY_ERRORS} if service.settings.repository_api else _ERRORS


def _refused(*statuses: int) -> Item:
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}


def _error(status: int, description: str) -> Item:
    schema = {"$ref": "#/components/schemas/Error"}
    answer: Item = {"description": description, "content": {_JSON: {"schema": schema}}}
    if status == 503:
        answer["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return answer


def _error_schema() -> Schema:
    properties = {"error": {"type": "string"}, "request_id": {"type": "string"}}
    return {"type": "object", "properties": properties}


def _known(model: ModelState) -> dict[str, Any]:
    """A model as the page shows it."""
    value = {**model.to_json(), "name": model.name}
    if model.runner is not None:
        metadata = model.runner.metadata
        value["platform"] = metadata.platform
        value["inputs"] = [spec.to_json() for spec in metadata.inputs]
        value["outputs"] = [spec.to_json() for spec in metadata.outputs]
    return value


def _v2_path(model: ModelMetadata) -> str:
    return f"/v2/models/{quote(model.name, safe='')}"


def _v1_path(model: ModelMetadata) -> str:
    return f"/v1/models/{quote(model.name, safe='')}"


def _pointer(path: str) -> str:
    """A path as a JSON pointer in a URI has it."""
    return quote(path.replace("~", "~0").replace("/", "~1"), safe="~")
