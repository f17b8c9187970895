"""The port of gRPC."""

import logging
from typing import Any, Final

import grpc

from mlimg.runtime.errors import LocalIOError
from mlimg.runtime.server.grpc_v2.door import Door
from mlimg.runtime.server.grpc_v2.servicer import INFERENCE, Servicer
from mlimg.runtime.server.service import Service

log = logging.getLogger(__name__)
_STREAMS: Final = 1024  # requests at once on one connection; a client lets others wait
_KEEPALIVE_MS: Final = 60_000  # a peer that is silent for so long is asked whether it is there


class GrpcServer:
    """A server of gRPC beside that of HTTP, in the same event loop."""

    def __init__(self, service: Service, host: str, port: int) -> None:
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        logging.getLogger("grpc").setLevel(logging.WARNING)  # at `debug` it has a line for each request, of its loop
        servicer = Servicer(service)
        self._door = Door(service, servicer)
        self._server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 0),  # another server on the port is an error, not a companion
                ("grpc.max_receive_message_length", service.settings.body_limit_bytes),
                ("grpc.max_concurrent_streams", _STREAMS),
                ("grpc.max_allowed_incoming_connections", service.settings.limits.connections),
                ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            )
        )
        for name, methods in servicer.methods().items():
            handlers = {method: self._door.handler(f"/{name}/{method}", what) for method, what in methods.items()}
            if name == INFERENCE:
                handlers["ModelInfer"] = self._door.infer(f"/{name}/ModelInfer")
            streams: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
                method: grpc.stream_unary_rpc_method_handler(handler) for method, handler in handlers.items()
            }
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, streams),))

    @property
    def under_way(self) -> int:
        """How many requests are not answered yet."""
        return self._door.under_way

    async def start(self) -> None:
        """Listen. Raises LocalIOError."""
        try:
            port = self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise LocalIOError(
                f"cannot listen on {self._address} for gRPC", hint="set MLIMG_GRPC_PORT or HOST"
            ) from error
        await self._server.start()
        log.info("gRPC is spoken on port %d", port)

    async def stop(self, grace_seconds: float) -> None:
        """Close the port; no request is under way."""
        await self._server.stop(grace_seconds)
