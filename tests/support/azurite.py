"""Azurite, Microsoft's own emulator of Azure Blob Storage, on loopback. `tools/test-packages.sh` installs it."""

import base64
import hashlib
import hmac
import html
import http.client
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from tests.support.engines import CACHE
from tests.support.servers import free_port

PROGRAM: Final = CACHE / "azurite" / "node_modules" / ".bin" / "azurite-blob"
CONTAINER: Final = "models"
ACCOUNT: Final = "mlimgtests"
KEY: Final = base64.b64encode(b"no secret: a key of the tests' own").decode()
_VERSION: Final = "2021-12-02"
_OPTIONS: Final = ("--skipApiVersionCheck", "--disableTelemetry", "--silent")
_START_SECONDS: Final = 60


@dataclass(frozen=True)
class Azurite:
    """A running store. `extents` is where it keeps its blobs' bytes."""

    host: str
    extents: Path

    @property
    def environ(self) -> Mapping[str, str]:
        """What a client is told."""
        return {
            "AZURE_STORAGE_ENDPOINT": f"http://{self.host}/{ACCOUNT}",
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        }

    def sas(self) -> str:
        """A signature that lets its bearer do all in the container, until 2099.

        https://learn.microsoft.com/rest/api/storageservices/create-service-sas
        """
        fields = {"sp": "racwdl", "se": "2099-01-01T00:00:00Z", "sv": _VERSION, "sr": "c"}
        lines = [fields["sp"], "", fields["se"], f"/blob/{ACCOUNT}/{CONTAINER}", "", "", "", _VERSION, "c", *[""] * 7]
        mac = hmac.digest(base64.b64decode(KEY), "\n".join(lines).encode(), hashlib.sha256)
        return urlencode({**fields, "sig": base64.b64encode(mac).decode()})

    def keys(self) -> dict[str, int]:
        """Every blob of the container with its size."""
        data = self._ask("GET", f"/{CONTAINER}?restype=container&comp=list", expected=200).decode()
        pairs = re.findall(r"<Name>([^<]*)</Name>.*?<Content-Length>(\d+)</Content-Length>", data, re.DOTALL)
        return {html.unescape(name): int(size) for name, size in pairs}

    def read(self, key: str) -> bytes:
        """A blob's bytes."""
        return self._ask("GET", f"/{CONTAINER}/{quote(key)}", expected=200)

    def put(self, key: str, data: bytes) -> None:
        """Write a blob."""
        self._ask("PUT", f"/{CONTAINER}/{quote(key)}", data, expected=201)

    def delete(self, key: str) -> None:
        """Remove a blob."""
        self._ask("DELETE", f"/{CONTAINER}/{quote(key)}", expected=202)

    def damage(self, content: bytes) -> int:
        """Flip a bit of the stored bytes wherever they are these; how often they were."""
        found = 0
        for path in self.extents.iterdir():
            data = path.read_bytes()
            if (at := data.find(content)) >= 0:
                with path.open("r+b") as file:
                    file.seek(at)
                    file.write(bytes([content[0] ^ 1]))
                found += 1
        return found

    def make_container(self) -> None:
        """Make the container. Raises OSError while the server starts."""
        self._ask("PUT", f"/{CONTAINER}?restype=container", expected=201)

    def _ask(self, method: str, path: str, body: bytes = b"", *, expected: int) -> bytes:
        """One request with the account's key.

        https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key
        """
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": _VERSION}
        if body:
            headers["x-ms-blob-type"] = "BlockBlob"
        parts = urlsplit(path)
        lines = [method, "", "", str(len(body) or ""), *[""] * 8]
        lines += [f"{name}:{value}" for name, value in sorted(headers.items())]
        lines += [f"/{ACCOUNT}/{ACCOUNT}{parts.path}", *(f"{k}:{v}" for k, v in sorted(parse_qsl(parts.query)))]
        mac = hmac.digest(base64.b64decode(KEY), "\n".join(lines).encode(), hashlib.sha256)
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(mac).decode()}"
        connection = http.client.HTTPConnection(self.host, timeout=30)
        try:
            connection.request(method, f"/{ACCOUNT}{path}", body or None, headers)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if answer.status != expected:
            raise OSError(f"{method} {path}: {answer.status} {data!r}")
        return data


@contextmanager
def azurite(folder: Path) -> Iterator[Azurite]:
    """Run a store with its data below `folder`; one container is there."""
    port = free_port()
    store = Azurite(f"127.0.0.1:{port}", folder / "__blobstorage__")
    with (folder / "azurite.log").open("wb") as log:
        server = subprocess.Popen(
            [PROGRAM, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", folder, *_OPTIONS],
            env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while (refusal := _refusal(store)) is not None:
            assert server.poll() is None, (folder / "azurite.log").read_text()
            assert time.monotonic() < deadline, refusal
            time.sleep(0.1)
        yield store
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _refusal(store: Azurite) -> Exception | None:
    try:
        store.make_container()
    except (OSError, http.client.HTTPException) as error:
        return error
    return None
