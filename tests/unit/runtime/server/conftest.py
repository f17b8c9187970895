"""A server in memory: the real application over a handler made of functions, called without a socket."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.server.app import Door, make_app
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.handler import Handler
from mlimg.runtime.server.leader import Leader, Pause
from mlimg.runtime.server.metadata import ModelMetadata
from mlimg.runtime.server.model import LoadedModel
from mlimg.runtime.server.protocols.table import PROTOCOLS
from mlimg.runtime.server.runners.threads import ThreadRunner, Threads
from mlimg.runtime.server.service import Service
from mlimg.runtime.server.settings import Settings
from mlimg.runtime.server.state import ModelState, State
from mlimg.runtime.server.tensors import TensorSpec

INFER = "/v2/models/digits/infer"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@dataclass
class Server:
    """The application with a model; `calls` counts the predictions that were started."""

    app: Door
    state: State
    calls: list[dict[str, Any]] = field(default_factory=list)

    def post(self, body: object, path: str = INFER, headers: Mapping[str, str] | None = None) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return asyncio.run(self.request("POST", path, [data], headers))

    def get(self, path: str, method: str = "GET") -> Answer:
        return asyncio.run(self.request(method, path, [b""]))

    async def request(  # noqa: PLR0917
        self,
        method: str,
        path: str,
        chunks: list[bytes],
        headers: Mapping[str, str] | None = None,
        gone: asyncio.Event | None = None,
        pause: asyncio.Event | None = None,
    ) -> Answer:
        """Send a request; `gone` is set when the client hangs up, `pause` when it goes on after the first chunk."""
        sent: list[dict[str, Any]] = []
        waiting = [
            {"type": "http.request", "body": chunk, "more_body": number < len(chunks)}
            for number, chunk in enumerate(chunks, start=1)
        ]
        gone = gone or asyncio.Event()

        async def receive() -> dict[str, Any]:
            if pause and len(waiting) < len(chunks):
                await pause.wait()
            if waiting:
                return waiting.pop(0)
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "http_version": "1.1",
            "scheme": "http",
            "server": ("testserver", 80),
            "client": ("testclient", 1),
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        }
        await self.app(scope, receive, send)
        start = sent[0]
        return Answer(
            start["status"],
            {name.decode(): value.decode() for name, value in start["headers"]},
            b"".join(message.get("body", b"") for message in sent[1:]).decode(errors="surrogateescape"),
        )


MakeServer = Callable[..., Server]


@pytest.fixture
def make_server() -> MakeServer:
    """Build a server of a `predict` function and the tensors it declares."""

    def make(
        predict: Callable[[Any, dict[str, Any]], Any] = lambda _model, inputs: inputs,
        inputs: tuple[TensorSpec, ...] = (),
        outputs: tuple[TensorSpec, ...] = (),
        pause: Pause | None = None,
        **settings: Any,
    ) -> Server:
        def counted(model: Any, arrays: dict[str, Any]) -> Any:
            server.calls.append(arrays)
            return predict(model, arrays)

        handler = Handler(Path("handler.py"), lambda _folder, _options: None, counted, None, None)
        model = LoadedModel(ModelMetadata("digits", "3", "sklearn", inputs, outputs), handler, None)
        chosen = replace(Settings.parse({"MLIMG_WORKERS": "2"}), **settings)
        runner = ThreadRunner(model, Threads(chosen.workers, pause))
        state = State((ModelState(),))
        state.models[0].is_up(runner, PreparedModel(Path("/models"), None, "/models", 0, 0.0, cache_hit=False))
        facts = ServerFacts("sklearn", "1", (), (), {})
        service = Service(state, chosen, facts)
        server = Server(make_app([route for protocol in PROTOCOLS for route in protocol(service)], service), state)
        return server

    return make


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no follower take over: the machine may have other things to do than a test."""
    monkeypatch.setattr("mlimg.runtime.server.leader._PATIENCE_SECONDS", 60.0)


def lead(main: Callable[[Leader[Any]], Coroutine[Any, Any, Any]]) -> Any:
    """Run `main`, which is given its leader."""
    with asyncio.Runner() as runner:
        leader = Leader[Any](runner.get_loop())
        return leader.run(main(leader))


def tensor(**changes: Any) -> dict[str, Any]:
    """A tensor that is right, but for `changes`; None leaves a key out."""
    value = {"name": "x", "datatype": "FP64", "shape": [2, 2], "data": [1, 2, 3, 4], **changes}
    return {key: item for key, item in value.items() if item is not None}
