import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from mlimg.runtime.errors import LimitError, LocalIOError, ModelError
from mlimg.sources import local
from mlimg.sources.local import open_source
from tests.support.models import nobody, peak_kib, write_tree


def paths(root: Path, *, follow_links: bool = False, allowed: tuple[Path, ...] = ()) -> list[str]:
    return [str(file.path) for file in open_source(root, follow_links=follow_links, allowed=allowed).inventory()]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.joblib").write_bytes(b"weights")
    return folder


@pytest.fixture
def readable_by_all() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_file_is_a_model_under_its_own_name(model: Path) -> None:
    (file,) = open_source(model / "model.joblib").inventory()
    assert (file.path, file.size_bytes, file.executable) == (PurePosixPath("model.joblib"), 7, False)


def test_a_folder_is_everything_below_it_sorted_by_bytes(model: Path) -> None:
    for name in ("a/z.bin", "a-b", "a.b", ".hidden/x", "ä", "Z"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).touch()
    listed = paths(model)
    assert listed == sorted(listed, key=lambda path: path.encode())
    assert set(listed) == {"model.joblib", "a/z.bin", "a-b", "a.b", ".hidden/x", "ä", "Z"}


def test_the_owner_s_execute_bit_travels_and_no_other_bit(model: Path) -> None:
    """B5"""
    (model / "run").touch()
    (model / "run").chmod(0o6700)
    (model / "not").touch()
    (model / "not").chmod(0o6011)
    executable = {str(file.path): file.executable for file in open_source(model).inventory()}
    assert executable == {"model.joblib": False, "not": False, "run": True}


def test_a_missing_model_is_refused_and_the_nearest_name_proposed(model: Path) -> None:
    """B1"""
    with pytest.raises(ModelError, match="does not exist") as caught:
        open_source(model.with_name("modle"))
    assert caught.value.hint == "did you mean `model`?"
    with pytest.raises(ModelError, match="does not exist"):
        open_source(model / "model.joblib" / "below-a-file")


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    """B1"""
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(ModelError, match="holds no files"):
        open_source(tmp_path / "a")


def test_a_file_without_bytes_is_kept(tmp_path: Path) -> None:
    """B1, the twin"""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "empty").touch()
    assert paths(tmp_path / "a") == ["b/empty"]


LINKS = {
    "out": "../secret",
    "absolute": "/etc/passwd",
    "loop": "loop",
    "dangling": "nowhere",
    "folder": "sub",
    "inside": "model.joblib",
}


@pytest.mark.parametrize("name", LINKS)
def test_links_are_refused(model: Path, name: str) -> None:
    """B4"""
    (model.parent / "secret").write_bytes(b"canary")
    (model / "sub").mkdir()
    assert paths(model) == ["model.joblib"]
    (model / name).symlink_to(LINKS[name])
    with pytest.raises(ModelError, match=f"{name}` is a link") as caught:
        open_source(model)
    assert "follow_links" in caught.value.hint


@pytest.mark.parametrize("name", sorted(set(LINKS) - {"inside"}))
def test_followed_links_may_not_leave_nor_lead_nowhere_nor_to_folders(model: Path, name: str) -> None:
    """B4"""
    (model.parent / "secret").write_bytes(b"canary")
    (model / "sub").mkdir()
    (model / name).symlink_to(LINKS[name])
    with pytest.raises(ModelError, match=f"{name}` is a link"):
        open_source(model, follow_links=True, allowed=(model,))


def test_a_followed_link_stands_for_the_file_in_an_allowed_folder(model: Path) -> None:
    """B4, the twin: so hub caches are laid out."""
    blobs = model.parent / "blobs"
    blobs.mkdir()
    (blobs / "abc").write_bytes(b"blob")
    (model / "weights.bin").symlink_to("../blobs/abc")
    with pytest.raises(ModelError, match="outside the project") as caught:
        open_source(model, follow_links=True)
    assert caught.value.hint == f"--allow-path {blobs}"
    source = open_source(model, follow_links=True, allowed=(blobs,))
    assert [str(file.path) for file in source.inventory()] == ["model.joblib", "weights.bin"]
    with source.open(PurePosixPath("weights.bin")) as file:
        assert file.read() == b"blob"


def test_a_link_as_the_model_itself_does_not_vouch_for_where_it_leads(model: Path) -> None:
    latest = model.parent / "latest"
    latest.symlink_to("model")
    with pytest.raises(ModelError, match="latest` is a link"):
        open_source(latest)
    with pytest.raises(ModelError, match="outside the project"):
        open_source(latest, follow_links=True)
    assert paths(latest, follow_links=True, allowed=(model.parent,)) == ["model.joblib"]


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "kernel log", "endless"])
@pytest.mark.parametrize("inside", [True, False])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, kind: str, inside: bool) -> None:
    """B6"""
    folder = tmp_path / "m"
    folder.mkdir()
    path = folder / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind == "device" and os.geteuid() == 0:
        os.mknod(path, 0o020666, os.makedev(1, 5))
    else:
        path = Path("/proc/kmsg" if kind == "kernel log" else "/dev/zero")
        if inside:
            path, link = folder, path
            (folder / "link").symlink_to(link)
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"not a plain file|outside the project"):
        open_source(folder if inside else path, follow_links=True)
    assert time.monotonic() - started < 1


def test_a_pipe_in_the_place_of_a_listed_file_hangs_nobody(model: Path) -> None:
    """B6"""
    source = open_source(model)
    (model / "model.joblib").unlink()
    os.mkfifo(model / "model.joblib")
    started = time.monotonic()
    with pytest.raises(ModelError, match="changed while it was read"):
        source.open(PurePosixPath("model.joblib"))
    assert time.monotonic() - started < 1


def test_a_file_that_may_not_be_read_is_named(readable_by_all: Path) -> None:
    """B7"""
    path = readable_by_all / "model.joblib"
    path.write_bytes(b"weights")
    path.chmod(0)
    with nobody():
        source = open_source(readable_by_all)
        with pytest.raises(LocalIOError, match=r"model\.joblib`: Permission denied"):
            source.open(PurePosixPath("model.joblib"))
    path.chmod(0o644)
    with nobody(), open_source(readable_by_all).open(PurePosixPath("model.joblib")) as file:
        assert file.read() == b"weights"


def test_a_folder_that_may_not_be_read_is_named(readable_by_all: Path) -> None:
    """B7"""
    (readable_by_all / "sub").mkdir(mode=0)
    with nobody(), pytest.raises(LocalIOError, match="sub`: Permission denied"):
        open_source(readable_by_all)


def test_a_disk_that_fails_while_reading_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """B7: the first page of a process is never mapped, so reading it is an input/output error of the system's own."""
    monkeypatch.setattr(local, "_kernel_devices", frozenset)
    source = open_source(Path("/proc/self/mem"))
    for read in (lambda file: file.read(1), lambda file: file.readinto(bytearray(1)), lambda file: file.readall()):
        with (
            source.open(PurePosixPath("mem")) as file,
            pytest.raises(LocalIOError, match="/proc/self/mem`: Input/output error"),
        ):
            read(file)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_the_nth_read_that_fails_names_the_file(model: Path, nth: int) -> None:
    """B7: four reads of 2 MiB hash this model, three of content and one that asks for its end."""
    (model / "model.joblib").write_bytes(bytes(5 * 1024 * 1024))
    program = (
        "import sys; from pathlib import Path\n"
        "from mlimg.pack import pack; from mlimg.sources.local import open_source\n"
        "from mlimg.runtime.errors import MlimgError\n"
        "try: pack(open_source(Path(sys.argv[1])), name='m', version='1', framework='f', format='f')\n"
        "except MlimgError as error: print(error.status, error)\n"
    )
    strace = ["strace", "-f", "-qq", "-P", str(model / "model.joblib"), "-e", "trace=read"]
    injected = subprocess.run(
        [*strace, "-e", f"inject=read:error=EIO:when={nth}", sys.executable, "-c", program, str(model)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "(INJECTED)" in injected.stderr
    assert injected.stdout.startswith("20 ")
    assert "model.joblib`: Input/output error" in injected.stdout


def test_a_file_too_large_for_a_model_is_refused_before_it_is_read(model: Path) -> None:
    """B8"""
    with (model / "model.joblib").open("wb") as file:
        file.truncate(local.MAX_FILE_BYTES)
        assert open_source(model).inventory().size_bytes == local.MAX_FILE_BYTES
        file.truncate(local.MAX_FILE_BYTES + 1)
    with pytest.raises(LimitError, match="at most"):
        open_source(model)


def test_too_many_files_are_refused_while_they_are_counted(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B8"""
    monkeypatch.setattr(local, "MAX_FILES", 20)
    for number in range(10):
        (model / f"d{number}").mkdir()
    for number in range(9):
        (model / f"d{number}" / "file").touch()
    assert len(paths(model)) == 10
    (model / "d9" / "file").touch()
    with pytest.raises(LimitError, match="more than 20 files and folders"):
        open_source(model)


def test_the_largest_model_by_count_costs_little_memory(model: Path) -> None:
    """B8"""
    count = 20_000
    for number in range(count):
        (model / f"a-file-with-a-long-enough-name-{number:06d}").touch()
    program = "import sys; from pathlib import Path; from mlimg.sources.local import open_source"
    grown_kib = peak_kib(f"{program}; source = open_source(Path(sys.argv[1]))", str(model)) - peak_kib(program)
    assert grown_kib * 1024 * (local.MAX_FILES / count) < 160 * 1024**2


BAD_NAMES = {
    "line\nfeed": r"line\\nfeed",
    "\x1b[31mred": r"\\x1b\[31mred",
    "right\u202eleft": r"\\u202e",
    "n" * 255: "254 bytes",
    "-rf": "starts with `-`",
    "CON": "every system",
    "aux.txt": "every system",
    "dot.": "every system",
    "space ": "every system",
    "back\\slash": "backslash",
    "cafe\u0301": "NFC",
    ".wh.x": "delete",
    "mlimg.manifest": "mlimg writes",
    ".claim": "mlimg writes",
}


@pytest.mark.parametrize(("name", "message"), BAD_NAMES.items(), ids=[repr(name[:9]) for name in BAD_NAMES])
def test_names_that_do_not_travel_are_refused_and_shown_escaped(model: Path, name: str, message: str) -> None:
    """B9"""
    (model / name).touch()
    with pytest.raises(ModelError, match=message) as caught:
        open_source(model)
    assert caught.value.message.isprintable()


def test_a_name_that_is_not_utf8_is_refused_and_shown_escaped(model: Path) -> None:
    """B9"""
    (model / os.fsdecode(b"\xff.bin")).touch()
    with pytest.raises(ModelError, match=r"\\udcff.bin` is not UTF-8"):
        open_source(model)


@pytest.mark.parametrize("name", ["n" * 254, "r-f", "CONE", "a.dot.b", "café", "space r", "sub/mlimg.manifest"])
def test_names_one_byte_away_travel(model: Path, name: str) -> None:
    """B9, the twins"""
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).touch()
    assert paths(model) == sorted([name, "model.joblib"])


@pytest.mark.parametrize(("one", "other"), [("a/x", "A/y"), ("Model", "MODEL"), ("straße", "STRASSE")])
def test_names_that_some_systems_take_for_one_are_refused(model: Path, one: str, other: str) -> None:
    """B9"""
    for name in (one, other):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).touch()
    with pytest.raises(ModelError, match="where case does not count"):
        open_source(model)


def test_a_file_that_grew_shrank_or_was_replaced_since_the_listing_is_not_opened(model: Path) -> None:
    """B2"""
    path = model / "model.joblib"
    for change in (
        lambda: path.write_bytes(b"longer than it was"),
        lambda: path.write_bytes(b"short"),
        path.unlink,
        lambda: (path.with_name("new").write_bytes(b"weights"), path.with_name("new").replace(path)),
    ):
        path.write_bytes(b"weights")
        source = open_source(model)
        source.open(PurePosixPath("model.joblib")).close()
        change()
        with pytest.raises(ModelError, match="changed while it was read"):
            source.open(PurePosixPath("model.joblib"))


def test_a_file_rewritten_while_it_is_open_is_noticed_at_its_end(model: Path) -> None:
    """B2"""
    path = model / "model.joblib"
    for read in (lambda file: file.read(100), lambda file: file.readall(), lambda file: file.readinto(bytearray(9))):
        path.write_bytes(b"weights")
        os.utime(path, ns=(0, 0))
        source = open_source(model)
        with source.open(PurePosixPath("model.joblib")) as file:
            assert file.read(7) == b"weights"
            path.write_bytes(b"WEIGHTS")
            with pytest.raises(ModelError, match="changed while it was read"):
                read(file)


def test_the_history_of_a_clone_is_no_part_of_a_model(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "model", {"weights.bin": b"w", ".git/config": b"token", ".gitattributes": b"* -text"})
    with pytest.raises(ModelError, match="history of a clone"):
        open_source(tree)
    (tree / ".git").rename(tmp_path / "elsewhere")
    assert [str(file.path) for file in open_source(tree).inventory()] == [".gitattributes", "weights.bin"]
