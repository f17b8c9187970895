"""The messages of V2 over gRPC and of gRPC's health protocol, made from a table of their fields.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/open_inference_grpc.proto
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_model_repository.html
https://github.com/grpc/grpc/blob/master/doc/health-checking.md

They are in a pool of their own: a handler may bring other definitions of the same names along.
"""

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from mlimg.runtime.server.errors import InputError

_PACKAGE: Final = "inference"
_SCALARS: Final[Mapping[str, FieldDescriptorProto.Type.ValueType]] = {
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "uint32": FieldDescriptorProto.TYPE_UINT32,
    "uint64": FieldDescriptorProto.TYPE_UINT64,
    "float": FieldDescriptorProto.TYPE_FLOAT,
    "double": FieldDescriptorProto.TYPE_DOUBLE,
    "string": FieldDescriptorProto.TYPE_STRING,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
}
# A field is `name number type`: `[type]` is repeated, `{type}` a map from strings.
_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ("live 1 bool",),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ("ready 1 bool",),
    "ModelReadyRequest": ("name 1 string", "version 2 string"),
    "ModelReadyResponse": ("ready 1 bool",),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": ("name 1 string", "version 2 string", "extensions 3 [string]"),
    "ModelMetadataRequest": ("name 1 string", "version 2 string"),
    "ModelMetadataResponse": (
        "name 1 string",
        "versions 2 [string]",
        "platform 3 string",
        "inputs 4 [TensorMetadata]",
        "outputs 5 [TensorMetadata]",
    ),
    "TensorMetadata": ("name 1 string", "datatype 2 string", "shape 3 [int64]"),
    "InferParameter": (
        "bool_param 1 bool",
        "int64_param 2 int64",
        "string_param 3 string",
        "double_param 4 double",
        "uint64_param 5 uint64",
    ),
    "InferTensorContents": (
        "bool_contents 1 [bool]",
        "int_contents 2 [int32]",
        "int64_contents 3 [int64]",
        "uint_contents 4 [uint32]",
        "uint64_contents 5 [uint64]",
        "fp32_contents 6 [float]",
        "fp64_contents 7 [double]",
        "bytes_contents 8 [bytes]",
    ),
    "InferTensor": (
        "name 1 string",
        "datatype 2 string",
        "shape 3 [int64]",
        "parameters 4 {InferParameter}",
        "contents 5 InferTensorContents",
    ),
    "InferRequestedOutput": ("name 1 string", "parameters 2 {InferParameter}"),
    "ModelInferRequest": (
        "model_name 1 string",
        "model_version 2 string",
        "id 3 string",
        "parameters 4 {InferParameter}",
        "inputs 5 [InferTensor]",
        "outputs 6 [InferRequestedOutput]",
        "raw_input_contents 7 [bytes]",
    ),
    "ModelInferResponse": (
        "model_name 1 string",
        "model_version 2 string",
        "id 3 string",
        "parameters 4 {InferParameter}",
        "outputs 5 [InferTensor]",
        "raw_output_contents 6 [bytes]",
    ),
    "RepositoryIndexRequest": ("repository_name 1 string", "ready 2 bool"),
    "RepositoryIndexResponse": ("models 1 [ModelIndex]",),
    "ModelIndex": ("name 1 string", "version 2 string", "state 3 string", "reason 4 string"),
    "ModelRepositoryParameter": (
        "bool_param 1 bool",
        "int64_param 2 int64",
        "string_param 3 string",
        "bytes_param 4 bytes",
    ),
    "RepositoryModelLoadRequest": (
        "repository_name 1 string",
        "model_name 2 string",
        "parameters 3 {ModelRepositoryParameter}",
    ),
    "RepositoryModelLoadResponse": (),
    "RepositoryModelUnloadRequest": (
        "repository_name 1 string",
        "model_name 2 string",
        "parameters 3 {ModelRepositoryParameter}",
    ),
    "RepositoryModelUnloadResponse": (),
    "HealthCheckRequest": ("service 1 string",),
    "HealthCheckResponse": ("status 1 int32",),  # an enum, which is the same on the wire
}


def _field(message: DescriptorProto, name: str, number: int, kind: str) -> None:
    """Add a field to `message`."""
    repeated = kind[0] in "[{"
    inner = kind.strip("[]{}")
    if kind[0] == "{":
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        _field(entry, "key", 1, "string")
        _field(entry, "value", 2, inner)
        inner = f"{message.name}.{entry.name}"
    field = message.field.add(name=name, number=number)
    field.label = FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
    field.type = _SCALARS.get(inner, FieldDescriptorProto.TYPE_MESSAGE)
    if inner not in _SCALARS:
        field.type_name = f".{_PACKAGE}.{inner}"


def _classes() -> Mapping[str, Any]:
    file = FileDescriptorProto(name="mlimg/v2.proto", package=_PACKAGE, syntax="proto3")
    for message, fields in _FIELDS.items():
        added = file.message_type.add(name=message)
        for field in fields:
            name, number, kind = field.split()
            _field(added, name, int(number), kind)
    pool = DescriptorPool()
    pool.Add(file)
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _FIELDS}


MESSAGES: Final = _classes()


def parsed(name: str, body: bytes) -> Any:
    """The message of a name. Raises InputError."""
    try:
        return MESSAGES[name].FromString(body)
    except DecodeError:
        raise InputError("the request is no message of the protocol") from None
