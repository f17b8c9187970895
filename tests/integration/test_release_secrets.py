"""C1, C2: what lies beside the spec and what a build is let to see goes into no image, context, history or message."""

import gzip
import json
import os
import tarfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.projects import Project

one_store = pytest.mark.parametrize("engine", ["graph"], indirect=True)
SEEN = "canary-7d1f0b5ce2"  # lies about in the folder
LENT = "canary-93ab44d07e"  # is lent to the build


@pytest.fixture
def context_tar(project: Project, tmp_path: Path) -> Path:
    """Where what `docker buildx build -` is sent lies afterwards: a `docker` before the real one keeps a copy."""
    real, kept, bin_folder = tmp_path / "docker", tmp_path / "context.tar", tmp_path / "bin"
    bin_folder.mkdir()
    wrapper = bin_folder / "docker"
    wrapper.write_text(
        textwrap.dedent(f"""\
            #!/bin/sh
            PATH=${{PATH#*:}}
            case "$*" in
              *" -") printf '%s\\n' "$*" >{real}.argv; tee {kept} | docker "$@" ;;
              *) exec docker "$@" ;;
            esac
            """)
    )
    wrapper.chmod(0o755)
    project.environ["PATH"] = f"{bin_folder}:{os.environ['PATH']}"
    return kept


def plant(folder: Path) -> list[Path]:
    """Secrets where people have them."""
    planted = []
    for name in (
        *(".env", ".netrc", ".aws/credentials", ".git/config", "id_rsa", ".docker/config.json", "notes.txt"),
        *("serve/.env", "serve/.git/config", "serve/__pycache__/handler.cpython-313.pyc"),
        *(".mlimg/store/other", "models/old.json", ".dockerignore"),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"!**\n{SEEN}\n")
        planted.append(path)
    return planted


def with_what_is_in_archives(data: bytes) -> Iterator[bytes]:
    """A file of a saved image; a layer unpacked, too."""
    yield data
    if data.startswith(b"\x1f\x8b"):
        yield gzip.decompress(data)


def hits(archive: Path, *canaries: str) -> list[str]:
    """The members of an archive that hold a canary, in content, name or compressed content."""
    found = []
    with tarfile.open(archive) as tar:
        for entry in tar:
            member = tar.extractfile(entry)
            texts = [entry.name.encode(), *with_what_is_in_archives(member.read() if member else b"")]
            found += [entry.name for text in texts for canary in canaries if canary.encode() in text]
    return found


def test_nothing_of_a_secret_is_in_what_comes_out(project: Project, context_tar: Path, tmp_path: Path) -> None:
    plant(project.folder)
    lent = tmp_path / "lent"
    lent.write_text(f"machine mirror.invalid login me password {LENT}\n")
    project.spec["build"] = {"secrets": ["netrc"]}
    project.set(server__env={"PROJECT": project.name})
    built = project.build("in-image", "--debug", "--secret", f"netrc={lent}")
    release = built.release
    assert release["server"]["how"] == "built"
    assert not any(canary in text for canary in (SEEN, LENT) for text in (built.stdout, built.stderr))

    with tarfile.open(context_tar) as tar:
        assert "Dockerfile" in tar.getnames()
    assert hits(context_tar, SEEN, LENT) == []
    argv = (tmp_path / "docker.argv").read_text()
    assert "id=netrc" in argv
    assert LENT not in argv

    for part in ("image", "server"):
        reference = release[part]["reference"]
        saved = tmp_path / f"{part}.tar"
        project.engine.docker("save", "--output", str(saved), reference)
        assert hits(saved, SEEN, LENT) == []
        history = project.engine.docker("history", "--no-trunc", "--format", "json", reference)
        assert SEEN not in history
        assert LENT not in history
        assert LENT not in json.dumps(project.inspect(reference))
    record = (project.folder / ".mlimg" / "release.json").read_text()
    assert LENT not in record
    assert SEEN not in record
    # The same eye finds what is there.
    assert hits(tmp_path / "image.tar", project.name)


@one_store
def test_a_failing_build_does_not_tell_its_secret(project: Project, tmp_path: Path) -> None:
    """C2, and its fault: the step that fails prints the secret it was lent."""
    template = project.folder / "server"
    assert project.mlimg("templates", "copy", "python", str(template)).status == 0
    install = template / "Dockerfile.j2"
    lent = tmp_path / "lent"
    lent.write_text(LENT)
    project.spec["server"]["template"] = "./server"
    project.spec["build"] = {"secrets": ["token"]}
    install.write_text(
        "FROM {{ base | image }}\n"
        "RUN --mount=type=secret,id=ca_bundle{{ secrets | secret_mounts }} "
        '["sh", "-c", "echo it says $(cat /run/secrets/token) >&2; exit 3"]\n'
        "USER 10001:0\n"
        "CMD {{ command | exec_form }}\n"
    )
    failed = project.build("in-image", "--debug", "--secret", f"token={lent}")
    assert failed.status == 14, failed.stderr
    assert "it says" in failed.stderr
    assert LENT not in failed.stderr + failed.stdout
