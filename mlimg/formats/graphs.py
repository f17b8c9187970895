"""Formats that are protocol buffers: ONNX and TensorFlow's SavedModel."""

import re
from collections.abc import Iterator
from typing import Final

from mlimg.formats.looks import Looks
from mlimg.peek import Peek, protobuf_fields

_DEFAULT_DOMAINS: Final = (b"", b"ai.onnx")
# TensorProto.external_data: entries of two texts, the second is after its length. Numbers are texts, too.
_LOCATION: Final = re.compile(rb"\n\x08location\x12([\x01-\x7f])", re.DOTALL)
_RANGE: Final = re.compile(rb"(?:j.\n\x06offset\x12.(\d{1,19}))?(?:j.\n\x06length\x12.(\d{1,19}))?", re.DOTALL)


def saved_model(ends: Peek) -> Looks | None:
    """https://www.tensorflow.org/guide/saved_model: a folder around this file; its content has no mark."""
    if ends.path.name != "saved_model.pb" or not ends.head.startswith(b"\x08\x01\x12"):
        return None
    for number, wire_type, value, end in protobuf_fields(ends.head):
        if (number, wire_type) == (2, 2):  # MetaGraphDef; its first field is MetaInfoDef
            damage = "" if end <= ends.size_bytes else "it ends within its graph"
            return Looks("savedmodel", damage=damage, version=_tensorflow_version(ends.head[end - value : end]))
    return Looks("savedmodel", damage="it ends within its graph")


def _tensorflow_version(graph: bytes) -> str:
    for number, wire_type, value, end in protobuf_fields(graph):
        if (number, wire_type) == (1, 2):
            info = graph[end - value : end]
            found = (info[at - size : at] for field, kind, size, at in protobuf_fields(info) if (field, kind) == (5, 2))
            return next(found, b"").decode(errors="replace")
    return ""


def onnx(ends: Peek) -> Looks | None:
    """ModelProto of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto: IR version 1, texts 2-4, 6, graph 7."""
    wire_types = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
    seen = []
    for number, wire_type, value, end in protobuf_fields(ends.head):
        if wire_types.get(number) != wire_type or (number == 1 and not 1 <= value < 100):
            return None
        seen.append(number)
        if number == 7 and seen[0] == 1:
            if end > ends.size_bytes:
                return Looks("onnx", damage="it ends within its graph")
            return Looks("onnx", opset=_opset(ends.at(end, ends.size_bytes - end)), needs=_external_data(ends))
    return None


def _opset(after_graph: bytes | None) -> int:
    """The version of ONNX's own operators; 0 where it does not lie within what was looked at."""
    for number, wire_type, size, end in protobuf_fields(after_graph or b""):
        if (number, wire_type) == (8, 2) and after_graph:
            domain, version = b"", 0
            entry = after_graph[end - size : end]
            for field, kind, value, at in protobuf_fields(entry):
                if (field, kind) == (1, 2):
                    domain = entry[at - value : at]
                elif (field, kind) == (2, 0):
                    version = value
            if domain in _DEFAULT_DOMAINS:
                return version
    return 0


def _external_data(ends: Peek) -> dict[str, int]:
    """Files that tensors lie in, as far as they are named within what was looked at."""
    needs: dict[str, int] = {}
    for name, end in (place for data in {ends.head, ends.tail} for place in _locations(data)):
        needs[name] = max(end, needs.get(name, 0))
    return needs


def _locations(data: bytes) -> Iterator[tuple[str, int]]:
    for found in _LOCATION.finditer(data):
        end = found.end() + found[1][0]
        if (place := _RANGE.match(data, end)) and end <= len(data):
            yield data[found.end() : end].decode(errors="replace"), sum(int(number or 0) for number in place.groups())
