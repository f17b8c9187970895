"""Builds far from home, and with secrets in every pocket: I6 and I10 of the fault matrix, on the real engine."""

import base64
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.projects import Project, expected, some_inputs

one_store = pytest.mark.parametrize("engine", ["graph"], indirect=True)


@one_store
def test_a_build_needs_neither_home_nor_language_nor_umask(project: Project) -> None:
    """I6: HOME cannot be written, the language is C, the umask is 000, and file names are not English."""
    weights = project.train(1)
    (project.folder / "model" / "größe.txt").write_text("groß")
    (project.folder / "serve" / "größe.py").write_text("")
    (project.environ["XDG_CACHE_HOME"], project.environ["HOME"]) = ("/proc/none", "/proc")
    project.environ |= {"LC_ALL": "C", "LANG": "C"}
    old = os.umask(0)
    try:
        built = project.build("in-image")
    finally:
        os.umask(old)
    assert built.status == 0, built.stderr
    ours = list((project.folder / ".mlimg").rglob("*"))
    assert ours
    assert not [path for path in ours if path.stat().st_mode & 0o022], "others may write what is ours"
    assert (project.folder / ".mlimg").stat().st_mode & 0o777 == 0o700
    inputs = some_inputs()
    assert project.answer(inputs) == expected(weights, inputs)


CANARY = "canary-1c93e07f55"
LOGIN = base64.b64encode(b"alice:secret").decode()  # the one that the registry of the tests takes


@contextmanager
def arguments_seen() -> Iterator[set[bytes]]:
    """The command lines of all processes that live meanwhile, but of those that a test gives a canary itself."""
    seen: set[bytes] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(path.read_bytes())
                except OSError:
                    continue
            time.sleep(0.02)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


@one_store
def test_no_canary_leaves_the_channel_it_came_by(project: Project, registry_auth: str, tmp_path: Path) -> None:
    """I10: every command at debug level, with a secret in each place that commands take secrets from."""
    secret, config = tmp_path / "netrc", tmp_path / "docker" / "config.json"
    secret.write_text(f"machine mirror.invalid login me password {CANARY}\n")
    config.parent.mkdir()
    logins = {registry_auth: {"auth": LOGIN}, "other.invalid": {"username": "me", "password": CANARY}}
    config.write_text(json.dumps({"auths": logins}))
    project.environ |= {
        "DOCKER_CONFIG": str(config.parent),
        "MLIMG_SECRET_NETRC": str(secret),
        "HTTPS_PROXY": f"http://me:{CANARY}@127.0.0.1:9",
        "HTTP_PROXY": f"http://me:{CANARY}@127.0.0.1:9",
        "NO_PROXY": "127.0.0.1,localhost",
        "AWS_SECRET_ACCESS_KEY": CANARY,
    }
    prefix = f"{registry_auth}/{project.name}"
    project.set(image=f"{prefix}/scores", server__image=f"{prefix}/server", model__store=f"oci://{prefix}/models")
    project.spec["build"] = {"platform": "linux/amd64", "secrets": ["netrc"]}
    project.spec["server"]["env"] = {"PROJECT": project.name}

    good: list[tuple[str, ...]] = [
        ("check",),
        ("plan", "--pattern", "load"),
        ("build", "--pattern", "load", "--push"),
        ("build", "--pattern", "in-image", "--push"),
        ("build", "--pattern", "in-image", "--no-push"),
        ("inspect",),
        ("inspect", f"{prefix}/scores:1"),
        ("render", "--pattern", "load", "-o", str(tmp_path / "rendered")),
        ("run", "--print"),
        ("run", "--detach", "--port", "0", "--ready-timeout", "60"),
        ("run", "--stop"),
        ("templates",),
        ("doctor",),
        ("clean", "--dry-run"),
    ]
    unreachable = ("--set", "server.base=unreachable.invalid/python:3")
    given = f"https://me:{CANARY}@mirror.invalid"
    bad: list[tuple[str, ...]] = [
        ("build", "--pattern", "load", *unreachable),
        ("build", "--pattern", "load", "--push", "--set", "model.store=oci://other.invalid/models"),
        ("check", "--set", f"build.index={given}/simple"),
        ("check", "--set", f"model.store=oci://me:{CANARY}@mirror.invalid/models"),
        ("check", "--set", f"server.base=me:{CANARY}@mirror.invalid/python:3"),
        ("predict", "--url", f"http://me:{CANARY}@127.0.0.1:9", "--model", "scores", "/dev/null"),
        ("build", "--pattern", "load", "--secret", CANARY),
    ]
    texts: dict[str, str] = {}
    try:
        with arguments_seen() as seen:
            for number, command in enumerate([*good, *bad]):
                done = project.mlimg(*command, "--debug")
                assert (done.status == 0) == (number < len(good)), (command, done)
                assert done.status != 70, done.stderr
                texts[f"{number} {command[0]}"] = done.stdout + done.stderr
        commands = [argv for argv in seen if b"--secret" in argv and b"buildx" in argv]
        assert commands, "no builder was seen"
        own = [argv for argv in seen if argv.split(b"\0")[-2:] == [b"--debug", b""]]
        texts["arguments"] = repr([argv for argv in seen if argv not in own])
        for path in [*project.folder.rglob("*"), *(tmp_path / "rendered").rglob("*")]:
            if path.is_file():
                texts[str(path)] = path.read_bytes().decode("latin-1")
        for image in ("scores:1", "server:1.0"):
            texts[image] = json.dumps(project.inspect(f"{prefix}/{image}"))
            texts[f"history of {image}"] = project.engine.docker("history", "--no-trunc", f"{prefix}/{image}")
    finally:
        for image in project.engine.docker(
            "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", f"{prefix}/*"
        ).split():
            project.engine.docker("image", "rm", "--force", image)
    hits = [where for where, text in texts.items() if CANARY in text or LOGIN in text]
    assert hits == []
    assert all(canary in secret.read_text() + config.read_text() for canary in (CANARY, LOGIN)), "nothing was planted"
