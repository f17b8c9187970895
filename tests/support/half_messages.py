"""A client of gRPC that begins a message and does not end it, which none of the real ones can be made to do."""

import socket

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import StreamEnded, StreamReset


def begin(port: int, method: str, size_bytes: int, sent_bytes: int) -> socket.socket:
    """Send so much of a message of that size, as long as the server takes it; the connection, which stays open."""
    connection = socket.create_connection(("127.0.0.1", port))
    client = H2Connection(H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    client.send_headers(
        1,
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ],
    )
    rest = memoryview(b"\0" + size_bytes.to_bytes(4, "big") + bytes(sent_bytes))
    while True:
        while rest and (room := min(client.local_flow_control_window(1), client.max_outbound_frame_size)):
            client.send_data(1, rest[:room].tobytes())
            rest = rest[room:]
        connection.sendall(client.data_to_send())
        if not rest:
            return connection
        for event in client.receive_data(connection.recv(65536)):
            if isinstance(event, StreamEnded | StreamReset):
                return connection
