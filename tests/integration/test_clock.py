"""A server whose clock somebody sets. Row H16: what is timed is timed as before."""

import http.client
import socket
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.crash import can_compile
from tests.support.servers import ECHO, ROOT, ask, rows, running, server_folder

INFER = "/v2/models/model/infer"
SLOW = ECHO.replace("return inputs", "import time; time.sleep(inputs['input'].flat[0]); return inputs")
YEAR_SECONDS = 366 * 86_400


@pytest.mark.skipif(not can_compile(), reason="there is no compiler")
def test_h16_a_clock_that_jumps_a_year_ahead_or_back_makes_nothing_late_or_early(tmp_path: Path) -> None:
    library, offset = tmp_path / "clock.so", tmp_path / "offset"
    source = ROOT / "tests" / "support" / "clock.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    offset.write_bytes(bytes(8))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"1")
    environ = {
        "LD_PRELOAD": str(library),
        "CLOCK_OFFSET": str(offset),
        "MLIMG_MODEL_DIR": str(tmp_path / "model"),
        "MLIMG_SERVER_DIR": str(server_folder(tmp_path / "server", SLOW)),
        "MLIMG_WORKERS": "4",
        "MLIMG_REQUEST_TIMEOUT_SECONDS": "2",
        "LOG_REQUESTS": "on",
    }

    def timed(port: int, seconds: float) -> tuple[int, float]:
        start = time.monotonic()
        return ask(port, INFER, rows([[seconds]])).status, time.monotonic() - start

    with running(environ) as serving, ThreadPoolExecutor(2) as clients:
        serving.wait_until(200)
        for jump in (YEAR_SECONDS, -YEAR_SECONDS):
            half = socket.create_connection(("127.0.0.1", serving.port), timeout=10)
            half.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n")  # the end of its headers is to come
            answered, hanging = clients.submit(timed, serving.port, 1.0), clients.submit(timed, serving.port, 8.0)
            time.sleep(0.3)
            with offset.open("r+b") as file:
                file.write(struct.pack("q", jump))
            assert answered.result()[0] == 200
            status, seconds = hanging.result()
            assert status == 504
            assert 1.9 < seconds < 6
            for rest in (b"\r\n", b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n"):
                half.sendall(rest)
                response = http.client.HTTPResponse(half)
                response.begin()
                assert (response.status, len(response.read()) > 0) == (200, True)
            half.close()
        serving.signal()
        code, log = serving.end()
    assert code == 0
    years = {line[:4] for line in log.splitlines()}
    assert {f"{datetime.now(UTC).year + by}" for by in (1, -1)} <= years, "the clock did not jump"
