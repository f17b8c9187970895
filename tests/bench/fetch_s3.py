"""A model is fetched from S3 and verified, against `aws s3 cp` of the same files, which verifies nothing.

The store is OpenStack Swift's S3 API on loopback, its data and what is fetched in memory (`/dev/shm`); on few cores its
own work in Python is most of what is measured. The memory of publishing and of fetching is weighed on the way.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

from measure import PYTHON, Row, Run, run, table
from project import write_random

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.support.swift import Swift, swift  # noqa: E402 (a benchmark is a command: its own folder alone is on the path)

MIB = 2**20
PUBLISH = """
import os, sys
from pathlib import Path
from mlimg.append import model_image
from mlimg.pack import pack
from mlimg.runtime.oci import Access
from mlimg.runtime.stores import ModelPayload, open_store
from mlimg.sources.local import open_source
packed = pack(open_source(Path(sys.argv[1])), name="bench", version=sys.argv[2], framework="python", format="joblib")
image = model_image(packed.layers, {})
payload = ModelPayload(packed.manifest, packed.layers, image.config(), image.manifest(), packed.open)
print(open_store("s3://models/bench", Access(environ=os.environ)).publish(payload).uri)
"""


def environ(store: Swift) -> dict[str, str]:
    """What both clients are told."""
    return {**store.environ, "LOG_LEVEL": "error", "AWS_EC2_METADATA_DISABLED": "true"}


def publish(store: Swift, folder: Path, files: int, total_bytes: int) -> Run:
    """Publish fresh random bytes; the URI is what it prints."""
    source = folder / "source"
    source.mkdir()
    for number in range(files):
        write_random(source / f"part-{number}.bin", total_bytes // files)
    done = run([PYTHON, "-c", PUBLISH, str(source), f"{files}"], cwd=ROOT, env=environ(store))
    shutil.rmtree(source)
    return done


def timed(store: Swift, argv: list[str], out: Path) -> Run:
    """Run a client into an empty folder."""
    shutil.rmtree(out, ignore_errors=True)
    done = run(argv, cwd=ROOT, env=environ(store))
    shutil.rmtree(out)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="length of the model")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if shutil.which("aws") is None:
        raise SystemExit("the AWS command line is not on the PATH: `pip install awscli` into an environment of its own")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:
        folder, out = Path(made), Path(made) / "out"
        (folder / "swift").mkdir()
        with swift(folder / "swift") as store:
            for files in (1, 8):
                sent = publish(store, folder, files, options.mib * MIB)
                uri = sent.stdout.strip()
                ours = [PYTHON, "-m", "mlimg.runtime", "fetch", uri, str(out)]
                copied = f"s3://models/bench/bench/{files}/"
                theirs = ["aws", "--endpoint-url", f"http://{store.host}", "s3", "cp", "--recursive", "--quiet"]
                theirs += [copied, str(out)]
                timed(store, ours, out)  # once each, so that everything is warm
                timed(store, theirs, out)
                ratios, peak_bytes = [], 0
                for _ in range(options.rounds):
                    them, us = timed(store, theirs, out), timed(store, ours, out)
                    print(f"{files} file(s): aws s3 cp {them.seconds:.2f} s, fetch {us.seconds:.2f} s", flush=True)
                    ratios.append(us.seconds / them.seconds)
                    peak_bytes = max(peak_bytes, us.peak_bytes)
                spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
                rows.append(Row(f"{files} file(s), verified, against aws s3 cp", median(ratios), 1.0, "x", spread))
                rows.append(Row(f"{files} file(s), peak memory of the fetch", peak_bytes / MIB, 150, "MiB"))
                rows.append(Row(f"{files} file(s), peak memory of publishing", sent.peak_bytes / MIB, 150, "MiB"))
                for key in list(store.keys()):
                    store.delete(key)
                shutil.rmtree(folder / "swift" / "devices" / "d1" / "objects", ignore_errors=True)
    table(rows)


if __name__ == "__main__":
    main()
