"""What tritonclient makes of a server: run with it in an environment of its own, with the server's address."""

import asyncio
import sys

import ml_dtypes
import numpy as np
from tritonclient import http
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

ARRAYS = {
    "BOOL": np.array([[True, False]]),
    "UINT8": np.array([[0, 255]], np.uint8),
    "UINT16": np.array([[0, 2**16 - 1]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 127]], np.int8),
    "INT16": np.array([[-(2**15), 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1]], np.int64),
    "FP16": np.array([[0.1, -65504]], np.float16),
    "FP32": np.array([[0.1, 3e38]], np.float32),
    "FP64": np.array([[0.1, 1e308]], np.float64),
    "BYTES": np.array([["ä".encode(), b""]], np.object_),
    "BF16": np.array([[0.1, 3e38]], ml_dtypes.bfloat16),
}
RAW = {"FP32": np.array([[np.nan, -np.inf]], np.float32), "BYTES": np.array([[b"\xff\x00", b"a"]], np.object_)}
MODEL = "echo"


def tensor(module, name, array, *, binary):
    made = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    return made.set_data_from_numpy(array, binary_data=binary)


def same(result, arrays):
    for name, array in arrays.items():
        got = result.as_numpy(name)
        assert got.dtype == array.dtype, (name, got.dtype)
        if name == "BYTES":
            got = np.array(
                [[text if isinstance(text, bytes) else text.encode() for text in row] for row in got], object
            )
        np.testing.assert_array_equal(got, array, name)


def forms():
    """Arrays, how they are sent and how they are asked for."""
    in_json = {name: array for name, array in ARRAYS.items() if name != "BF16"}  # the client has no BF16 in JSON
    yield in_json, False, False
    yield in_json, False, True
    yield ARRAYS, True, True
    yield ARRAYS, True, False
    yield RAW, True, True


def requests(module):
    for arrays, sent, wanted in forms():
        inputs = [tensor(module, name, array, binary=sent) for name, array in arrays.items()]
        outputs = [module.InferRequestedOutput(name, binary_data=wanted) for name in arrays]
        for how in (None, "gzip", "deflate"):
            options = {"request_compression_algorithm": how, "response_compression_algorithm": how}
            yield arrays, {"inputs": inputs, "outputs": outputs, "request_id": f"{how}", **options}


def status(client, array, datatype="FP64", **options):
    """The status of a request that is refused; None for one that is not."""
    one = http.InferInput("FP64", list(array.shape), "FP64").set_data_from_numpy(array)
    one._datatype = datatype  # what the client would not let pass
    try:
        client.infer(MODEL, [one], **options)
    except InferenceServerException as error:
        return error.status()


def check_refusals(client):
    good = np.zeros((1, 2))
    assert status(client, good) is None
    assert status(client, np.zeros((1, 3))) == "400"
    assert status(client, good, "FP32") == "400"
    assert status(client, good, "FP65") == "400"
    assert status(client, good, model_version="4") == "404"
    assert status(client, good, outputs=[http.InferRequestedOutput("FP64", class_count=2)]) == "400"


def check(url):
    client = http.InferenceServerClient(url, concurrency=4, network_timeout=60.0)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "3")
    assert not client.is_model_ready(MODEL, "4")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata(MODEL)
    assert {spec["name"]: spec["datatype"] for spec in metadata["inputs"]} == {name: name for name in ARRAYS}
    assert metadata["versions"] == ["3"]
    assert client.get_model_repository_index()[0] == {"name": MODEL, "version": "3", "state": "READY", "reason": ""}
    for arrays, request in requests(http):
        result = client.infer(MODEL, **request)
        same(result, arrays)
        assert result.get_response()["id"] == request["request_id"]
        assert result.get_response()["model_version"] == "3"
    array = np.random.default_rng(0).normal(size=(1000, 2))
    result = client.infer(MODEL, [tensor(http, "FP64", array, binary=True)], model_version="3", parameters={"a": 1})
    same(result, {"FP64": array})
    for how in ("gzip", "deflate"):  # more than is inflated in the event loop, and more than one packet back
        options = {"request_compression_algorithm": how, "response_compression_algorithm": how}
        much = np.tile(array, (8, 1))
        same(client.infer(MODEL, [tensor(http, "FP64", much, binary=True)], **options), {"FP64": much})
    pending = [client.async_infer(MODEL, [tensor(http, "FP64", array + n, binary=True)], priority=1) for n in range(8)]
    for n, one in enumerate(pending):
        same(one.get_result(), {"FP64": array + n})
    check_refusals(client)
    client.close()


async def check_async(url):
    async with aio.InferenceServerClient(url, conn_timeout=60.0) as client:
        assert await client.is_model_ready(MODEL)
        answers = await asyncio.gather(*(client.infer(MODEL, **request) for _, request in requests(aio)))
        for answer, (arrays, _) in zip(answers, requests(aio), strict=True):
            same(answer, arrays)


if __name__ == "__main__":
    check(sys.argv[1])
    asyncio.run(check_async(sys.argv[1]))
