"""The smallest files that are of each format: the marks, ends and cross-references that real ones have."""

import base64
import io
import json
import struct
import zipfile
from collections.abc import Mapping

# The index that TensorFlow 2.21 wrote for one variable of a hundred floats: its data are 502 bytes.
_VARIABLES_INDEX = base64.b64decode(
    "AAAGCAEaAggBABwOX0NIRUNLUE9JTlRBQkxFX09CSkVDVF9HUkFQSAgHEgAgkAMoZjVCBL3nABwQdi8uQVRUUklCVVRFUy9WQVJJ"
    "QUJMRV9WQUxVRQgBEgQSAghkKJADNYkMsyoAAAAAAQAAAACTtoN6AAAAAAEAAAAAwPKhsAABAncAbQAAAAABAAAAAJL/3gNyCH8O"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAV/uAiyR1R9s="
)


def safetensors(size_bytes: int = 4000) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [size_bytes // 4], "data_offsets": [0, size_bytes]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size_bytes)


def zipped(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """A protocol buffer: numbers and what has a length."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        else:
            out += _varint(number << 3 | 2) + _varint(len(value)) + value
    return out


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def onnx(opset: int = 17, external: Mapping[str, tuple[int, int]] | None = None) -> bytes:
    """A model whose tensors are ranges (offset, length) of files beside it."""
    tensors = []
    for name, (offset, length) in (external or {}).items():
        texts = {"location": name, "offset": str(offset), "length": str(length)}
        entries = [message((1, key.encode()), (2, value.encode())) for key, value in texts.items()]
        tensors.append((5, message((8, b"w"), *((13, entry) for entry in entries), (14, 1))))
    graph = message((2, b"graph" * 10), *tensors)
    operators = [message((1, b"ai.onnx.ml"), (2, 3)), message((1, b""), (2, opset))]
    return message((1, 8), (2, b"pytorch"), (7, graph), *((8, entry) for entry in operators))


def gguf(alignment: int = 32, cut_bytes: int = 0) -> bytes:
    """Two tensors behind metadata of every kind."""
    texts = b"".join(_text(f"token{number}".encode()) for number in range(50))
    metadata = [
        _text(b"general.architecture") + struct.pack("<I", 8) + _text(b"llama"),
        _text(b"general.alignment") + struct.pack("<II", 4, alignment),
        _text(b"tokens") + struct.pack("<IIQ", 9, 8, 50) + texts,
        _text(b"scores") + struct.pack("<IIQ", 9, 6, 50) + bytes(200),
        _text(b"nested") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 0, 3) + bytes(3),
        _text(b"flag") + struct.pack("<I?", 7, True),
    ]
    tensors = [
        _text(b"a") + struct.pack("<IQQIQ", 2, 16, 4, 0, 0),  # 64 floats
        _text(b"b") + struct.pack("<IQIQ", 1, 64, 2, 256),  # two blocks of Q4_0
    ]
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + b"".join(metadata + tensors)
    data = header + bytes(-len(header) % alignment) + bytes(256 + 36)
    return data[: len(data) - cut_bytes]


def _text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def transformers(version: str = "5.23.0", shards: int = 1) -> dict[str, bytes]:
    config = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "transformers_version": version}
    files = {"config.json": json.dumps(config).encode(), "tokenizer.json": b'{"version": "1.0"}\n'}
    if shards == 1:
        return files | {"model.safetensors": safetensors()}
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    index = {"metadata": {}, "weight_map": {f"layer.{number}": name for number, name in enumerate(names)}}
    files["model.safetensors.index.json"] = json.dumps(index, indent=2).encode() + b"\n"
    return files | {name: safetensors() for name in names}


def saved_model() -> dict[str, bytes]:
    info = message((2, b"operators"), (4, b"serve"), (5, b"2.21.0"), (6, b"v2.21.0"))
    return {
        "saved_model.pb": message((1, 1), (2, message((1, info), (2, b"graph")))),
        "variables/variables.index": _VARIABLES_INDEX,
        "variables/variables.data-00000-of-00001": bytes(502),
    }


def keras(version: str = "3.15.1") -> bytes:
    metadata = json.dumps({"keras_version": version, "date_saved": "2026-01-01@00:00:00"}).encode()
    return zipped({"metadata.json": metadata, "config.json": b"{}", "model.weights.h5": b"\x89HDF" + bytes(500)})


def torchscript() -> bytes:
    names = ("data/0", "data.pkl", "code/__torch__.py", "constants.pkl", "version", "byteorder")
    return zipped({f"net/{name}": bytes(64) for name in names})


def torch_export(version: str = "2.13.0+cpu", members: int = 1) -> bytes:
    """The program lies behind the weights; the directory of many members is longer than the end of a file."""
    weights = {f"net/data/weights/weight_{number}": bytes(64) for number in range(members)}
    program = {"graph_module": {}, "torch_version": version, "guards_code": []}
    last = {
        "net/models/model.json": json.dumps(program).encode(),
        "net/archive_format": b"pt2",
        "net/byteorder": b"little",
    }
    return zipped(weights | last)


def mlflow(version: str = "3.17.2", model: str = "model.ubj", data: bytes = b"", **function: str) -> dict[str, bytes]:
    """A model of the flavour of XGBoost, as MLflow writes it."""
    lines = {"data": model, "loader_module": "mlflow.xgboost", "python_version": "3.11.7"} | function
    own = "".join(f"    {key}: {value}\n" for key, value in lines.items())
    text = f"flavors:\n  python_function:\n{own}  xgboost:\n    xgb_version: 3.2.0\nmlflow_version: {version}\n"
    return {"MLmodel": text.encode(), model: data or UBJ, "requirements.txt": b"xgboost==3.2.0\n"}


UBJ = (
    b"{L\x00\x00\x00\x00\x00\x00\x00\x07learner{" + bytes(1000) + b"}"
    b"L\x00\x00\x00\x00\x00\x00\x00\x07version[#L\x00\x00\x00\x00\x00\x00\x00\x03i\x03i\x02i\x00}"
)
LIGHTGBM = b"tree\nversion=v4\n\nend of trees\n\nend of parameters\n\npandas_categorical:null\n"

# By format: the framework, the version that the files tell, and the files.
MODELS: Mapping[str, tuple[str, str, Mapping[str, bytes]]] = {
    "onnx": ("onnx", "", {"m.onnx": onnx(external={"m.data": (4096, 4000)}), "m.data": bytes(8096)}),
    "safetensors": ("custom", "", {"m.safetensors": safetensors()}),
    "transformers": ("transformers", "5.23.0", transformers()),
    "gguf": ("llama.cpp", "", {"m.gguf": gguf()}),
    "torchscript": ("pytorch", "", {"m.pt": torchscript()}),
    "torch-export": ("pytorch", "2.13.0+cpu", {"m.pt2": torch_export()}),
    "savedmodel": ("tensorflow", "2.21.0", saved_model()),
    "keras": ("keras", "3.15.1", {"m.keras": keras()}),
    "mlflow": ("mlflow", "3.17.2", mlflow()),
    "xgboost-ubj": ("xgboost", "3.2.0", {"m.ubj": UBJ}),
    "xgboost-json": ("xgboost", "3.1.0", {"m.json": b'{"learner":{"attributes":{}},"version":[3,1,0]}'}),
    "lightgbm": ("lightgbm", "4", {"m.txt": LIGHTGBM}),
}
