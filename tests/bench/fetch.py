"""A model is fetched from a registry, verified, against `curl` of its blob followed by `openssl dgst -sha256`.

The registry is docker-registry on loopback, its data and what is fetched in memory (`/dev/shm`). A second run has the
line limited per connection by a proxy, where one file and eight files of the same length must take the same time.
"""

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from measure import PYTHON, Row, Run, run, table

from mlimg.append import model_image
from mlimg.pack import pack
from mlimg.runtime.oci import Access
from mlimg.runtime.stores import ModelPayload, open_store
from mlimg.sources.local import open_source

MIB = 2**20
LINE_BYTES_PER_SECOND = 24 * MIB  # of each connection, in the second part
ROOT = Path(__file__).parents[2]


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """A docker-registry with its data in `folder`; its host and port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    settings = folder / "registry.yml"
    settings.write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/data}}}}\nhttp: {{addr: '{host}'}}\n"
    )
    process = subprocess.Popen(
        ["docker-registry", "serve", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            try:
                socket.create_connection(host.split(":"), 1).close()  # type: ignore[arg-type]
                break
            except OSError:
                time.sleep(0.05)
        yield host
    finally:
        process.terminate()
        process.wait()


def publish(host: str, folder: Path, name: str, files: int, total_bytes: int) -> tuple[str, list[str]]:
    """Publish a model of fresh random bytes: its URI, and the digests of its large layers."""
    source = folder / "source"
    source.mkdir()
    for number in range(files):
        with (source / f"part-{number}.bin").open("wb") as file:
            for _ in range(total_bytes // files // MIB):
                file.write(os.urandom(MIB))
    packed = pack(open_source(source), name=name, version="1", framework="python", format="joblib")
    image = model_image(packed.layers, {"io.mlimg.model.digest": packed.manifest.digest.text})
    payload = ModelPayload(packed.manifest, packed.layers, image.config(), image.manifest(), packed.open)
    stored = open_store(f"oci://{host}/bench", Access()).publish(payload)
    shutil.rmtree(source)
    return str(stored.uri), [str(layer.digest) for layer in packed.layers[:-1]]


def fetch(uri: str, folder: Path) -> Run:
    """Fetch into an empty folder, as an init container does."""
    shutil.rmtree(folder, ignore_errors=True)
    done = run([PYTHON, "-m", "mlimg.runtime", "fetch", uri, str(folder)], cwd=ROOT, env={"LOG_LEVEL": "error"})
    shutil.rmtree(folder)
    return done


def by_hand(host: str, name: str, digests: list[str], out: Path) -> float:
    """`curl` of each blob, then its digest."""
    seconds = 0.0
    for digest in digests:
        url = f"http://{host}/v2/bench/{name}/blobs/{digest}"
        seconds += run(["curl", "--silent", "--show-error", "--fail", url, "--output", str(out)]).seconds
        hashed = run(["openssl", "dgst", "-sha256", "-r", str(out)])
        assert hashed.stdout.split()[0] == digest.removeprefix("sha256:")
        seconds += hashed.seconds
        out.unlink()
    return seconds


class LimitedLine:
    """Passes connections on to `host`, each at a limited rate towards the client."""

    def __init__(self, host: str, bytes_per_second: int) -> None:
        self._target = host.split(":")
        self._rate = bytes_per_second
        self._server = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._server.accept()
            server = socket.create_connection((self._target[0], int(self._target[1])))
            threading.Thread(target=self._copy, args=(client, server, 0), daemon=True).start()
            threading.Thread(target=self._copy, args=(server, client, self._rate), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, rate: int) -> None:
        due = time.monotonic()
        try:
            while piece := source.recv(256 * 1024):
                target.sendall(piece)
                if rate:
                    due = max(due, time.monotonic() - 0.05) + len(piece) / rate
                    time.sleep(max(0.0, due - time.monotonic()))
        except OSError:
            pass
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def row(figure: str, values: list[float], bar: float) -> Row:
    return Row(figure, statistics.median(values), bar, "x", f"{min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=2048, help="length of the model")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:
        folder = Path(made)
        with registry(folder) as host:
            for files in (1, 8):
                name = f"files-{files}"
                uri, digests = publish(host, folder, name, files, options.mib * MIB)
                fetch(uri, folder / "out")
                pairs = [
                    (by_hand(host, name, digests, folder / "out"), fetch(uri, folder / "out"))
                    for _ in range(options.rounds)
                ]
                for theirs, ours in pairs:
                    print(f"{files} files: curl and openssl {theirs:.2f} s, fetch {ours.seconds:.2f} s", flush=True)
                if files == 1:
                    rows = [row("fetch, verified, against curl + openssl", [o.seconds / t for t, o in pairs], 0.8)]
                    peak = max(ours.peak_bytes for _, ours in pairs) / MIB
                    rows.append(Row("peak memory", peak, 150, "MiB"))
                else:
                    rows.append(row("the same, eight files", [o.seconds / t for t, o in pairs], 0.8))
                line = LimitedLine(host, LINE_BYTES_PER_SECOND)
                limited = uri.replace(host, line.host)
                seconds = fetch(limited, folder / "out").seconds
                alone = options.mib * MIB / LINE_BYTES_PER_SECOND
                figure = (
                    f"{files} file(s) over {LINE_BYTES_PER_SECOND // MIB} MiB/s a connection, against one connection"
                )
                rows.append(Row(figure, seconds / alone, 1 / 3, "x", f"{seconds:.1f} s, {alone:.1f} s"))
                shutil.rmtree(folder / "data")
    table(rows)
