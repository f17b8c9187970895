"""`mlimg render` writes what `docker build` turns into the image that `mlimg build` makes, with no mlimg at hand."""

import hashlib
import io
import os
import shlex
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.projects import Project

one_store = pytest.mark.parametrize("engine", ["graph"], indirect=True)


def docker_build(project: Project, folder: Path, tag: str) -> None:
    """Build as the folder's README says, and as a machine must whose proxy signs certificates of its own."""
    written = (folder / "README.md").read_text()
    (command,) = [text for text in written.split("`") if text.startswith("docker build ")]
    assert len(written.splitlines()) == 1
    words = shlex.split(command)
    secret = os.environ.get("SSL_CERT_FILE")
    extra = ["--secret", f"id=ca_bundle,src={secret}"] if secret else []
    words = [*words[:-1], "--tag", tag, *extra, words[-1]]
    done = subprocess.run(words, cwd=folder, env=project.engine.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def contents(project: Project, image: str) -> dict[str, tuple[Any, ...]]:
    """Every file of an image as a container would see it: kind, mode, owner, target, and digest."""
    container = project.engine.docker("create", image)
    try:
        exported = subprocess.run(
            ["docker", "export", container], env=project.engine.env, check=True, capture_output=True
        ).stdout
    finally:
        project.engine.docker("rm", container)
    found: dict[str, tuple[Any, ...]] = {}
    with tarfile.open(fileobj=io.BytesIO(exported)) as archive:
        for entry in archive:
            data = archive.extractfile(entry) if entry.isreg() else None
            digest = hashlib.sha256(data.read()).hexdigest() if data else ""
            found[entry.name] = (entry.type, oct(entry.mode), entry.uid, entry.gid, entry.linkname, digest)
    return found


def config(project: Project, image: str) -> dict[str, Any]:
    """Everything of an image's config that a container is started from."""
    value = project.inspect(image)
    settings = {key: setting for key, setting in value["Config"].items() if setting}
    settings["Env"] = sorted(settings["Env"])
    return {"os": value["Os"], "architecture": value["Architecture"], "settings": settings}


@pytest.mark.parametrize("pattern", ["in-image", "load"])
def test_docker_build_makes_the_same_image(project: Project, pattern: str, tmp_path: Path) -> None:
    (project.folder / "model" / "vocabulary").mkdir()
    (project.folder / "model" / "vocabulary" / "words.txt").write_text("one two three")
    (project.folder / "model" / "tool.sh").write_text("#!/bin/sh\n")
    (project.folder / "model" / "tool.sh").chmod(0o700)
    project.spec["server"]["env"] = {"GREETING": "a 'quoted' \"text\" with $HOME and \\"}
    release = project.build(pattern).release
    built = (release["image"] or release["server"])["reference"]
    folder = tmp_path / "context"
    old_umask = os.umask(0o077)
    try:
        rendered = project.mlimg("render", "--pattern", pattern, "-o", str(folder))
    finally:
        os.umask(old_umask)
    assert rendered.status == 0, rendered.stderr
    other = f"{project.prefix}/rendered:1"
    docker_build(project, folder, other)
    assert contents(project, other) == contents(project, built)
    assert config(project, other) == config(project, built)


@one_store
def test_rendering_again_takes_the_place_of_the_first(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "context"
    assert project.mlimg("render", "--pattern", "in-image", "-o", str(folder)).status == 0
    before = tree(folder)
    assert project.mlimg("render", "--pattern", "in-image", "-o", str(folder)).status == 0
    assert tree(folder) == before
    assert project.mlimg("render", "--pattern", "load", "-o", str(folder)).status == 0
    assert "models" not in {path.split("/")[0] for path in tree(folder)}
    assert list(tmp_path.glob(".context*")) == []


@one_store
def test_a_folder_of_somebody_else_is_left_alone(project: Project, tmp_path: Path) -> None:
    for name, files in {"notes": ["notes.txt"], "own": ["Dockerfile", "README.md"]}.items():
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            (folder / file).write_text("mine")
        before = tree(folder)
        refused = project.mlimg("render", "--pattern", "load", "-o", str(folder))
        assert refused.status == 13
        assert tree(folder) == before
    (tmp_path / "file").write_text("mine")
    assert project.mlimg("render", "--pattern", "load", "-o", str(tmp_path / "file")).status == 13
    # Its twin: an empty folder.
    (tmp_path / "empty").mkdir()
    assert project.mlimg("render", "--pattern", "load", "-o", str(tmp_path / "empty")).status == 0


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its mode."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }
