"""Formats that are protocol buffers: ONNX and TensorFlow's SavedModel."""

from mlimg.formats.looks import Looks
from mlimg.peek import Peek, protobuf_fields


def saved_model(ends: Peek) -> Looks | None:
    """https://www.tensorflow.org/guide/saved_model: a folder around this file; its content has no mark."""
    if ends.path.name != "saved_model.pb" or not ends.head.startswith(b"\x08\x01\x12"):
        return None
    (_, (_, _, _, end), *_) = [*protobuf_fields(ends.head), (0, 0, 0, 0), (0, 0, 0, 0)]
    return Looks("savedmodel", damage="" if end <= ends.size_bytes else "it ends within its graph")


def onnx(ends: Peek) -> Looks | None:
    """ModelProto of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto: IR version 1, texts 2-4, 6, graph 7."""
    wire_types = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
    seen = []
    for number, wire_type, value, end in protobuf_fields(ends.head):
        if wire_types.get(number) != wire_type or (number == 1 and not 1 <= value < 100):
            return None
        seen.append(number)
        if number == 7 and seen[0] == 1:
            return Looks("onnx", damage="" if end <= ends.size_bytes else "it ends within its graph")
    return None
