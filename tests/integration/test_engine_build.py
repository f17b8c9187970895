"""The build, on both image stores, with its faults: judged by the engine's images and the machine's processes."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlimg.engine import buildx
from mlimg.engine.base import resolve_base
from mlimg.engine.docker import Engine, EngineImage
from mlimg.plan import BaseImage
from mlimg.render import Context, ExpectedConfig
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import EngineError, LocalIOError, RemoteError, RemoteTemporaryError
from tests.integration.conftest import unavailable
from tests.support.engines import Engine as Host

CANARY = "canary-8f0c1d77a2"


@dataclass
class Steps:
    """What the build reported."""

    texts: list[str] = field(default_factory=list)

    def advance(self, size_bytes: int) -> None:
        raise AssertionError("a build moves no bytes of ours")

    def update(self, text: str) -> None:
        self.texts.append(text)


def context(base: BaseImage, *lines: str, user: str = "10001:0", env: dict[str, str] | None = None) -> Context:
    body = "\n".join([f"FROM {base.pinned}", *lines]) + "\n"
    expected = ExpectedConfig(user, env or {}, (), (), (), {})
    return Context(body, (), Digest.of(body.encode()), expected)


@pytest.fixture
def connected(engine: Host, tmp_path: Path) -> Iterator[Engine]:
    connected = Engine.connect(engine.env | {"XDG_CACHE_HOME": str(tmp_path)})
    yield connected
    connected.close()


@pytest.fixture
def base(connected: Engine, base_image: str) -> BaseImage:
    return resolve_base(connected, base_image, connected.platform)


@pytest.fixture
def tag(engine: Host) -> Iterator[str]:
    """The tag that a build is to set."""
    tag = f"mlimg.local/test-{uuid.uuid4().hex[:8]}:key"
    yield tag
    if engine.docker("image", "ls", "--quiet", tag):
        engine.docker("image", "rm", "--force", tag)


@pytest.fixture
def build(connected: Engine, base: BaseImage, tag: str) -> Callable[..., EngineImage]:
    def build(*lines: str, **changes: Any) -> EngineImage:
        expected = {key: changes.pop(key) for key in ("user", "env") if key in changes}
        settings: dict[str, Any] = {
            "platform": connected.platform,
            "base": base,
            "secrets": {},
            "ca_bundle": None,
            "tags": [tag],
            "report": Steps(),
            "timeout_seconds": 120,
        }
        settings |= changes
        return buildx.build(connected, context(settings["base"], *lines, **expected), **settings)

    return build


def names(engine: Host, pattern: str) -> list[str]:
    return engine.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", pattern).split()


def processes(text: str) -> list[str]:
    """The commands of this machine that have `text` among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            argv = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if text.encode() in argv:
            found.append(str(argv))
    return found


def until_gone(text: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while processes(text):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_built_image_has_its_tag_and_no_other(
    engine: Host, base: BaseImage, tag: str, build: Callable[..., EngineImage]
) -> None:
    steps = Steps()
    image = build("RUN mkdir /srv/x", "USER 10001:0", report=steps)
    assert engine.docker("image", "inspect", "--format", "{{.Id}}", tag) == image.id
    assert image.repo_tags == (tag,)
    assert image.image.diff_ids[: len(base.diff_ids)] == base.diff_ids
    assert any("RUN mkdir /srv/x" in text for text in steps.texts)
    assert not names(engine, f"{buildx.BUILD_REPOSITORY}:*")


def test_a_failing_step_tells_its_instruction_and_last_lines_without_secrets(
    engine: Host, tag: str, build: Callable[..., EngineImage], tmp_path: Path
) -> None:
    """D5, and C2: what a step prints of a secret is blotted out."""
    secret = tmp_path / "token"
    secret.write_text(CANARY)
    show = "RUN --mount=type=secret,id=token seq 1 40; echo token is $(cat /run/secrets/token); "
    with pytest.raises(EngineError) as failed:
        build(show + "exit 3", "USER 10001:0", secrets={"token": secret})
    assert "exit code: 3" in failed.value.message
    assert "seq 1 40" in failed.value.message
    assert failed.value.log[-1] == "token is ***"
    assert len(failed.value.log) == 20
    assert CANARY not in failed.value.message
    assert not names(engine, tag)
    build(show + "exit 0", "USER 10001:0", secrets={"token": secret})
    history = engine.docker("image", "history", "--no-trunc", tag) + engine.docker("image", "inspect", tag)
    assert CANARY not in history


def test_a_secret_is_in_no_argument(build: Callable[..., EngineImage], tmp_path: Path) -> None:
    """I10: the arguments of a build can be read by every user of the machine."""
    secret = tmp_path / 'a,b "c"'  # a path that a list of options could take apart
    secret.write_text(CANARY)
    seen: set[bytes] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    argv = path.read_bytes()
                except OSError:
                    continue
                if b"buildx" in argv:
                    seen.add(argv)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        build(
            "RUN --mount=type=secret,id=token,required=true "
            f"test $(cat /run/secrets/token) = {CANARY[:6]}${{X}}{CANARY[6:]} && echo {uuid.uuid4()} && sleep 0.5",
            "USER 10001:0",
            secrets={"token": secret},
        )
    finally:
        done.set()
        watcher.join()
    assert any(b"--secret" in argv for argv in seen)
    assert not any(CANARY.encode() in argv for argv in seen)


@pytest.mark.parametrize("limit", [{"stall_seconds": 3}, {"timeout_seconds": 4}])
def test_a_hanging_step_is_cancelled(
    engine: Host, tag: str, build: Callable[..., EngineImage], limit: dict[str, float]
) -> None:
    """D6, with a twin that ends in time."""
    seconds = str(10_000 + uuid.uuid4().int % 10_000)
    started = time.monotonic()
    with pytest.raises(EngineError, match="sleep") as failed:
        build(f"RUN sleep {seconds}", "USER 10001:0", **limit)
    assert time.monotonic() - started < 10
    assert "was stopped" in failed.value.message
    assert until_gone(seconds, 2)
    assert not names(engine, tag)
    build("RUN sleep 0.1", "USER 10001:0", **dict.fromkeys(limit, 60.0))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["RUN true > /x"], "User"),
        (["RUN true > /x", "USER 10001:1"], "User"),
        (["RUN true > /x", "USER 10001:0", "ENV WANTED=other"], "Env WANTED is another value"),
        (["RUN true > /x \\", "# swallowed", "USER 10001:0"], "User"),
        (["USER 10001:0", "ENV WANTED=yes"], "adds no layer"),
        (["RUN true > /x", "FROM scratch", "COPY --from=0 / /", "USER 10001:0", "ENV WANTED=yes"], "lowest layers"),
    ],
)
def test_an_image_that_drifted_from_the_plan_is_refused(
    engine: Host, tag: str, build: Callable[..., EngineImage], lines: list[str], told: str
) -> None:
    """D11, with a twin that is as planned."""
    with pytest.raises(EngineError, match=told) as failed:
        build(*lines, env={"WANTED": "yes"})
    assert failed.value.status == 14
    assert not names(engine, tag)
    assert not names(engine, f"{buildx.BUILD_REPOSITORY}:*")
    build("RUN true > /x", "USER 10001:0", "ENV WANTED=yes", env={"WANTED": "yes"})
    assert names(engine, tag)


INTERRUPTED = """
import sys
from mlimg.engine import buildx
from mlimg.engine.base import resolve_base
from mlimg.engine.docker import Engine
from tests.integration.test_engine_build import Steps, context

base, seconds, tag = sys.argv[1:]
engine = Engine.connect()
resolved = resolve_base(engine, base, engine.platform)
print("ready", flush=True)
try:
    buildx.build(
        engine, context(resolved, f"RUN sleep {seconds}", "USER 10001:0"), platform=engine.platform, base=resolved,
        secrets={}, ca_bundle=None, tags=[tag], report=Steps(), timeout_seconds=600,
    )
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("after_seconds", [0.0, 0.1, 0.2, 0.4, None])
def test_ctrl_c_cancels_the_build_at_once(engine: Host, base_image: str, tag: str, after_seconds: float | None) -> None:
    """D12: at any time, and with None as soon as the step's own process runs."""
    seconds = str(20_000 + uuid.uuid4().int % 10_000)
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, base_image, seconds, tag],
        env=engine.env,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        if after_seconds is None:
            while not processes(seconds):
                time.sleep(0.02)
        else:
            time.sleep(after_seconds)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
        took = time.monotonic() - sent
    assert process.returncode in {130, -signal.SIGINT}, errors
    assert took < 2
    assert until_gone(seconds, 2)
    assert not names(engine, tag)
    assert not names(engine, f"{buildx.BUILD_REPOSITORY}:*")


def test_a_base_tag_that_moves_changes_nothing(engine: Host, connected: Engine, base_image: str, tag: str) -> None:
    """C6: the tag is moved to another image all the time while servers are built."""
    moving = f"mlimg.local/test-{uuid.uuid4().hex[:8]}:base"
    other = f"{moving}-other"
    engine.docker("build", "--tag", other, "-", stdin=f"FROM {base_image}\nRUN touch /not-the-base\n")
    moves = 0
    done = threading.Event()

    def move() -> None:
        nonlocal moves
        while not done.is_set():
            for image in (other, base_image):
                engine.docker("tag", image, moving)
                moves += 1

    engine.docker("tag", base_image, moving)
    wanted = tuple(map(Digest.parse, engine.diff_ids(base_image)))
    mover = threading.Thread(target=move)
    try:
        for turn in range(3):
            engine.docker("tag", base_image, moving)
            resolved = resolve_base(connected, moving, connected.platform)
            assert resolved.diff_ids == wanted
            engine.docker("tag", other, moving)
            if turn == 1:
                mover.start()
            image = buildx.build(
                connected,
                context(resolved, f"RUN test ! -e /not-the-base && echo {turn} > /x", "USER 10001:0"),
                platform=connected.platform,
                base=resolved,
                secrets={},
                ca_bundle=None,
                tags=[tag],
                report=Steps(),
                timeout_seconds=120,
            )
            assert image.image.diff_ids[: len(wanted)] == wanted
            if turn == 1:
                done.set()
                mover.join()
                assert moves > 2
    finally:
        done.set()
        engine.docker("image", "rm", "--force", moving, other)


def test_a_base_of_a_registry_is_built_on_by_digest(
    engine: Host, connected: Engine, base_image: str, registry: str, build: Callable[..., EngineImage]
) -> None:
    reference = f"{registry}/{uuid.uuid4().hex[:8]}:base"
    engine.docker("tag", base_image, reference)
    engine.docker("push", "--quiet", reference)
    engine.docker("image", "rm", reference)
    resolved = resolve_base(connected, reference, connected.platform)
    assert "@sha256:" in resolved.pinned
    image = build("RUN true > /x", "USER 10001:0", base=resolved)
    assert image.image.diff_ids[: len(resolved.diff_ids)] == resolved.diff_ids
    engine.docker("image", "rm", "--force", reference)


def test_a_base_that_is_gone_is_told_as_a_remote_failure(
    connected: Engine, base: BaseImage, registry: str, build: Callable[..., EngineImage]
) -> None:
    """D8, where the builder is the one to find out."""
    digest = Digest.of(b"never pushed")
    gone = BaseImage(base.written, f"{registry}/none/here@{digest}", base.identity, base.diff_ids)
    with pytest.raises((RemoteError, RemoteTemporaryError)) as failed:
        build("RUN true > /x", "USER 10001:0", base=gone)
    assert "none/here" in failed.value.message


def test_a_missing_secret_is_told(build: Callable[..., EngineImage]) -> None:
    with pytest.raises(EngineError, match="token") as failed:
        build(f"RUN --mount=type=secret,id=token,required=true echo {uuid.uuid4()}", "USER 10001:0")
    assert failed.value.status == 14


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A disk of 16 MiB for temporary files."""
    if os.geteuid() != 0:
        unavailable("a disk of the test's own needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], check=True)
    monkeypatch.setenv("TMPDIR", str(disk))
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("percent", [0, 50, 99, 100])
def test_temporary_files_need_a_few_bytes_and_have_them_or_are_told(
    engine: Host, tag: str, build: Callable[..., EngineImage], small_disk: Path, percent: int
) -> None:
    """C4: the context is streamed, so that a disk with a corner free is enough; a full one is told before the build."""
    filler = small_disk / "filler"
    filler.write_bytes(bytes((16 << 20) * percent // 100))
    if percent < 100:
        build("RUN true > /x", "USER 10001:0")
        assert names(engine, tag)
    else:
        with pytest.raises(LocalIOError, match=r"16,384 bytes are needed .* and 0 are free") as failed:
            build("RUN true > /x", "USER 10001:0")
        assert failed.value.status == 20
        assert str(small_disk) in failed.value.message
        assert not names(engine, tag)
    assert list(small_disk.iterdir()) == [filler]
