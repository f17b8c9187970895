"""Servers replaced one after another behind a balancer, as a deployment does it. Row L13: no client notices."""

import http.client
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from tests.support.balancer import balancing
from tests.support.rounds import rounds
from tests.support.servers import ServerProcess, ask, rows, running, server_folder

INFER = "/v2/models/model/infer"
CLIENTS = 10
PAUSE_SECONDS = 0.05  # of each client between two requests: 200 a second, less what their answers take


def test_l13_servers_are_replaced_under_load_and_every_request_is_answered(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"1")
    environ = {"MLIMG_MODEL_DIR": str(tmp_path / "model"), "MLIMG_SERVER_DIR": str(server_folder(tmp_path / "server"))}
    over, wrong, answered = threading.Event(), list[object](), list[float]()

    def client(number: float) -> None:
        while not over.wait(PAUSE_SECONDS):
            number += CLIENTS
            try:
                reply = ask(balancer.port, INFER, rows([[number]]))
            except (OSError, http.client.HTTPException) as error:
                wrong.append(error)
                continue
            if reply.status == 200 and reply.json["outputs"][0]["data"] == [number]:
                answered.append(number)
            else:
                wrong.append(reply)

    def start() -> ServerProcess:
        server = servers.enter_context(running(environ))
        server.wait_until(200)
        return server

    with ExitStack() as servers, balancing() as balancer, ThreadPoolExecutor(CLIENTS) as clients:
        replicas = [start(), start()]
        balancer.point_to(*(server.port for server in replicas))
        for number in range(CLIENTS):
            clients.submit(client, number)
        try:
            for _ in range(rounds(2)):
                old = replicas.pop(0)
                replicas.append(start())
                balancer.point_to(*(server.port for server in replicas))
                time.sleep(0.5)  # what `preStop` is for: connections on their way to the old one arrive
                old.signal()
                assert old.end()[0] == 0
        finally:
            over.set()
    assert not wrong
    assert len(answered) > 100 * rounds(2)
