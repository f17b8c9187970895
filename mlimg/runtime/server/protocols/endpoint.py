"""The endpoint behind every protocol's route for predictions."""

from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from mlimg.runtime.server.compression import compressing
from mlimg.runtime.server.exchange import Codec
from mlimg.runtime.server.http import send_reply
from mlimg.runtime.server.service import Service


class Predict:
    """An ASGI application that lets a model answer: the one of the path, else the server's only one.

    `codec` tells how to read the request, from its headers and its path; `protocol` is what metrics call it.
    """

    def __init__(self, service: Service, codec: Callable[[Scope], Codec], protocol: str = "other") -> None:
        self._service = service
        self._protocol = protocol
        self._codec = codec

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises HTTPException."""
        path = scope.get("path_params", {})
        runner = self._service.runner(path.get("model"), path.get("version"))
        scope["served"] = (self._protocol, runner.metadata.name)
        codec = compressing(self._codec(scope), scope)
        await send_reply(send, await self._service.infer(scope, receive, runner, codec))
