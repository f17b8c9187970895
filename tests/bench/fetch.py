"""A model is fetched from a registry, verified, against `curl` of its blob followed by `openssl dgst -sha256`.

The registry is docker-registry on loopback, its data and what is fetched in memory (`/dev/shm`). A second run has the
line limited per connection by a proxy, where one file and eight files of the same length must take the same time.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

from measure import PYTHON, Row, Run, run, table
from places import docker_registry
from project import write_random

from mlimg.append import model_image
from mlimg.pack import pack
from mlimg.runtime.oci import Access
from mlimg.runtime.stores import ModelPayload, open_store
from mlimg.sources.local import open_source

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.support.lines import Line  # noqa: E402 (a benchmark is a command: its own folder alone is on the path)

MIB = 2**20
LINE_BYTES_PER_SECOND = 24 * MIB  # of each connection, in the second part


def publish(host: str, folder: Path, name: str, files: int, total_bytes: int) -> tuple[str, list[str]]:
    """Publish a model of fresh random bytes: its URI, and the digests of its large layers."""
    source = folder / "source"
    source.mkdir()
    for number in range(files):
        write_random(source / f"part-{number}.bin", total_bytes // files)
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


def by_hand(host: str, name: str, digests: list[str], out: Path) -> tuple[float, float]:
    """`curl` of each blob, then its digest: the time, and the processors' time, which others do not stretch."""
    runs = []
    for digest in digests:
        url = f"http://{host}/v2/bench/{name}/blobs/{digest}"
        runs.append(run(["curl", "--silent", "--show-error", "--fail", url, "--output", str(out)]))
        hashed = run(["openssl", "dgst", "-sha256", "-r", str(out)])
        assert hashed.stdout.split()[0] == digest.removeprefix("sha256:")
        runs.append(hashed)
        out.unlink()
    return sum(done.seconds for done in runs), sum(done.cpu_seconds for done in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=2048, help="length of the model")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.mib < 512:
        parser.error("a file has a layer of its own from 64 MiB on, so eight files need --mib 512")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made, docker_registry(Path(made)) as registry:
        folder = Path(made)
        for files in (1, 8):
            name = f"files-{files}"
            uri, digests = publish(registry.host, folder, name, files, options.mib * MIB)
            fetch(uri, folder / "out")  # once, so that everything is warm
            ratios, cpu_ratios, peak_bytes = [], [], 0
            for _ in range(options.rounds):
                seconds, cpu_seconds = by_hand(registry.host, name, digests, folder / "out")
                ours = fetch(uri, folder / "out")
                print(f"{files} file(s): curl and openssl {seconds:.2f} s, fetch {ours.seconds:.2f} s", flush=True)
                ratios.append(ours.seconds / seconds)
                cpu_ratios.append(ours.cpu_seconds / cpu_seconds)
                peak_bytes = max(peak_bytes, ours.peak_bytes)
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}; of processor time {median(cpu_ratios):.2f}"
            rows.append(Row(f"{files} file(s), verified, against curl + openssl", median(ratios), 0.8, "x", spread))
            rows.append(Row(f"{files} file(s), peak memory", peak_bytes / MIB, 150, "MiB"))
            with Line(registry.host, bytes_per_second=LINE_BYTES_PER_SECOND) as line:
                seconds = fetch(uri.replace(registry.host, line.host), folder / "out").seconds
            alone = options.mib * MIB / LINE_BYTES_PER_SECOND
            figure = f"{files} file(s), {LINE_BYTES_PER_SECOND // MIB} MiB/s a connection, against one connection"
            rows.append(Row(figure, seconds / alone, 1 / 3, "x", f"{seconds:.1f} s, {alone:.1f} s"))
            registry.empty()
    table(rows)


if __name__ == "__main__":
    main()
