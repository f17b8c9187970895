"""A folder store on a disk that fails: F13 (the n-th call of a kind), F15 (few descriptors).

The kernel's calls are failed by strace; what is there afterwards is read with nothing of ours.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.rounds import rounds
from tests.support.servers import ROOT

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
PROGRAM = """
import sys
from pathlib import Path
from mlimg.runtime.errors import MlimgError
from mlimg.runtime.stores.directory import DirectoryStore
from tests.support.payloads import payload
model = payload({"model.joblib": b"weights " * 1000, "words/one.txt": b"one", "words/two.txt": b"two"})
try:
    DirectoryStore(Path(sys.argv[1])).publish(model)
except MlimgError as error:
    print(error.status, error.message)
"""
FILES = {"model.joblib": b"weights " * 1000, "words/one.txt": b"one", "words/two.txt": b"two"}
# Each call that changes the store, and how often it comes when nothing fails; reading opens much that is not the store.
CALLS = ("write", "fsync", "rename", "mkdir", "fchmod", "flock")
ERRORS = ("ENOSPC", "EIO", "EROFS")


def publish(store: Path, *tracer: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*tracer, sys.executable, "-c", PROGRAM, str(store)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def seen(store: Path) -> dict[str, bytes]:
    """The version as anybody sees it; {} where it is not there. Without its manifest it is not."""
    version = store / "digits" / "3"
    if not (version / "mlimg.manifest").exists():
        return {}
    files = {str(path.relative_to(version)): path.read_bytes() for path in version.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if name not in {"mlimg.manifest", ".claim"}}


def inject(call: str, error: str, nth: int, store: Path) -> list[str]:
    """Fail the n-th call that has to do with the store, and no other."""
    calls = "rename,renameat,renameat2" if call == "rename" else "mkdir,mkdirat" if call == "mkdir" else call
    paths = [store, store / "digits", *(store / "digits" / name for name in ("3", ".3.lock"))]
    version = store / "digits" / "3"
    paths += [version / name for name in (".claim", ".mlimg-part", "words", "words/one.txt", "model.joblib")]
    paths += [version / "mlimg.manifest", *version.glob("*")]
    chosen = [word for path in paths for word in ("-P", str(path))]
    return ["strace", "-f", "-qq", *chosen, "-e", f"trace={calls}", "-e", f"inject={calls}:error={error}:when={nth}"]


@needs_strace
@pytest.mark.parametrize("call", CALLS)
def test_f13_a_disk_that_fails_at_any_call_leaves_no_version_and_the_next_run_finishes(
    tmp_path: Path, call: str
) -> None:
    struck = 0
    for nth in range(1, 100):
        store = tmp_path / str(nth)
        done = publish(store, *inject(call, ERRORS[nth % len(ERRORS)], nth, store))
        if "(INJECTED)" not in done.stderr:
            assert done.stdout == ""  # the twin: the run in which the n-th call never comes
            assert seen(store) == FILES
            break
        struck += 1
        assert "Traceback" not in done.stderr
        # Some failures do no harm, such as that of making a folder readable which is readable.
        assert done.stdout.startswith("20 ") or seen(store) == FILES, done.stdout + done.stderr[-500:]
        assert done.stdout.count("\n") <= 1
        assert seen(store) in ({}, FILES)
        again = publish(store)
        assert (again.stdout, seen(store)) == ("", FILES), again.stderr
        if nth >= rounds(2):
            break
    assert struck


def test_f15_five_hundred_files_need_few_descriptors(tmp_path: Path) -> None:
    program = PROGRAM.replace(
        'payload({"model.joblib": b"weights " * 1000, "words/one.txt": b"one", "words/two.txt": b"two"})',
        'payload({f"part-{number}": b"%d" % number for number in range(500)})',
    )
    assert "range(500)" in program
    for limit, status in (("64", 0), ("4", 1)):  # the second is too few for Python itself: the limit holds
        store = tmp_path / limit
        done = subprocess.run(
            ["sh", "-c", f'ulimit -n {limit}; exec "$0" -c "$1" "$2"', sys.executable, program, str(store)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) == (status != 0), done.stderr
        if status == 0:
            assert done.stdout == ""
            assert seen(store) == {f"part-{number}": b"%d" % number for number in range(500)}
