"""What the built-in server's care costs: answers a second beside ASGI applications without any, on uvicorn alike.

One sends back what it gets. The other reads the tensor, asks the model in the event loop and writes the answer: no
limits, no queue, no time-outs, no metrics, no ids, and nothing is checked. Sixteen connections, `wrk`, one row as JSON.
"""

import argparse
import statistics
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from measure import Row, table
from servers import OURS, SKLEARN, Contender, ours, python, started, train
from serving import JSON_BODY, alternate, rate, script, spread

ECHO = """\
async def app(scope, receive, send):
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})
"""
BY_HAND = """\
import os

import joblib
import msgspec
import numpy

model = joblib.load(os.environ["MODEL"])


async def app(scope, receive, send):
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    if body:
        (tensor,) = msgspec.json.decode(body)["inputs"]
        found = model.predict(numpy.array(tensor["data"]).reshape(tensor["shape"]))
        output = {"name": "predict", "datatype": "INT64", "shape": found.shape, "data": found.tolist()}
        body = msgspec.json.encode({"model_name": "model", "outputs": [output]})
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})
"""


def bare(text: str, model: Path, folder: Path, port: int, name: str) -> Contender:
    """An application under uvicorn, as it comes with httptools."""
    module = f"bare{port}"
    (folder / f"{module}.py").write_text(text)
    options = ["--app-dir", str(folder), "--port", str(port), "--http", "httptools", "--loop", "asyncio"]
    command = [*python(SKLEARN, *OURS), "-m", "uvicorn", *options, "--no-access-log", f"{module}:app"]
    return Contender(name, port, "model", command, {"MODEL": str(model)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each measured rate")
    given = parser.parse_args()
    with TemporaryDirectory(prefix="mlimg-bench.") as name, ExitStack() as stack:
        folder = Path(name)
        model = train(folder)
        contenders = [
            ours(model, folder, 47461, "mlimg"),
            bare(ECHO, model, folder, 47462, "echo"),
            bare(BY_HAND, model, folder, 47463, "by hand"),
        ]
        servers = [stack.enter_context(started(contender)) for contender in contenders]
        body = script(folder, "row", JSON_BODY, {"Content-Type": "application/json"})
        for server in servers:
            rate(server.contender.url, body, 2)
        found = alternate(given.rounds, lambda server: rate(server.contender.url, body, given.seconds), servers)
    rows = []
    for name, bar in (("echo", 0.8), ("by hand", None)):
        values = [mine / theirs for mine, theirs in zip(found["mlimg"], found[name], strict=True)]
        figure = f"requests a second, one row, JSON: mlimg over {name}"
        rows.append(Row(figure, statistics.median(values), bar, "x", spread(values), at_least=True))
    table(rows)


if __name__ == "__main__":
    main()
