"""Releases in OCI layouts, and on into a registry: judged by skopeo, oras and docker."""

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.projects import (
    NOWHERE,
    Project,
    digest_of,
    expected,
    infer,
    manifest_of,
    output,
    some_inputs,
    tags_of,
    wait_until_ready,
)
from tests.support.servers import free_port

one_store = pytest.mark.parametrize("engine", ["graph"], indirect=True)


def names(layout: Path) -> list[str]:
    index = json.loads((layout / "index.json").read_bytes())
    return [listed["annotations"]["org.opencontainers.image.ref.name"] for listed in index["manifests"]]


def check_whole(layout: Path) -> None:
    """Every blob is what its name says, and every manifest's blobs are there."""
    blobs = layout / "blobs" / "sha256"
    for path in blobs.iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    for listed in json.loads((layout / "index.json").read_bytes())["manifests"]:
        manifest = json.loads((blobs / listed["digest"].removeprefix("sha256:")).read_bytes())
        for blob in (manifest["config"], *manifest["layers"]):
            assert (blobs / blob["digest"].removeprefix("sha256:")).stat().st_size == blob["size"]


def build(project: Project, pattern: str, *arguments: str, **environ: str) -> dict[str, Any]:
    return project.build(pattern, "--output", "oci:out", *arguments, environ=environ).release


def serve(project: Project, reference: str, inputs: list[list[float]]) -> list[float]:
    port = free_port()
    container = project.engine.docker("run", "--detach", "--read-only", "-p", f"127.0.0.1:{port}:8080", reference)
    try:
        wait_until_ready(port)
        return infer(port, "scores", inputs)
    finally:
        project.engine.docker("rm", "--force", container)


def test_a_layout_holds_the_release_and_goes_on_to_a_registry_where_it_runs(
    project: Project, registry: str, tmp_path: Path
) -> None:
    weights, inputs = project.train(4), some_inputs()
    release = build(project, "in-image")
    layout = project.folder / "out"
    image, server = f"{project.prefix}/scores", f"{project.prefix}/server"
    assert names(layout) == [f"{server}:1.0", f"{image}:1-1.0", f"{image}:1"]
    assert release["layout"] == str(layout)
    assert not (project.folder / ".mlimg" / "release.json").exists(), "nothing of it is in the engine to be run"
    check_whole(layout)
    seen = json.loads(output("skopeo", "inspect", f"oci:{layout}:{image}:1"))
    assert seen["Digest"] == release["image"]["pinned"].partition("@")[2]
    assert seen["Labels"]["io.mlimg.model.version"] == "1"

    build(project, "load")
    check_whole(layout)
    assert names(layout)[-2:] == [f"{image}-model:1", f"{image}-model:1-modelpack"]

    to = f"{registry}/{project.name}"
    pushed = project.mlimg("push", "out", "--to", to, "--json")
    assert pushed.status == 0, pushed.stderr
    carried = {image["reference"].partition("@")[0]: image for image in json.loads(pushed.stdout)["images"]}
    there = f"{to}/{project.name}"
    assert list(carried) == [
        f"{there}/server:1.0",
        f"{there}/scores-model:1",
        f"{there}/scores-model:1-modelpack",
        f"{there}/scores:1-1.0",
        f"{there}/scores:1",
    ]
    assert digest_of(f"{there}/scores:1") == release["image"]["pinned"].partition("@")[2]
    config = manifest_of(f"{there}/scores:1")["config"]["digest"]
    assert config == release["image"]["digest"], "the identity is that of every other sink"
    project.engine.docker("pull", "--quiet", f"{there}/scores:1")
    try:
        assert serve(project, f"{there}/scores:1", inputs) == expected(weights, inputs)
    finally:
        project.engine.docker("image", "rm", "--force", f"{there}/scores:1")

    again = project.mlimg("push", "out", "--to", to, "--json")
    assert {image["how"] for image in json.loads(again.stdout)["images"]} == {"unchanged"}
    project.train(5)
    build(project, "in-image")
    conflict = project.mlimg("push", "out", "--to", to)
    assert conflict.status == 19, conflict.stderr
    assert digest_of(f"{there}/scores:1") == release["image"]["pinned"].partition("@")[2]


def test_the_same_image_comes_of_the_engine_and_of_the_layout(project: Project) -> None:
    in_engine = project.build("in-image").release
    in_layout = build(project, "in-image")
    assert in_layout["image"]["digest"] == in_engine["image"]["digest"]
    assert in_layout["server"]["digest"] == in_engine["server"]["digest"]
    again = build(project, "in-image")
    assert (again["image"]["how"], again["server"]["how"]) == ("unchanged", "unchanged")
    assert again["image"]["pinned"] == in_layout["image"]["pinned"]


@one_store
def test_no_engine_is_needed_when_the_server_is_published(published: Project, tmp_path: Path) -> None:
    server = published.build("in-image", "--push").release["server"]
    published.train(2)
    published.set(model__version="2")
    release = build(published, "in-image", DOCKER_HOST=NOWHERE)
    assert release["server"]["pinned"] == server["pinned"], "what is published is taken over byte for byte"
    check_whole(published.folder / "out")
    assert tags_of(f"{published.prefix}/scores") == ["1", "1-1.0"], "nothing left the machine"
    pushed = published.mlimg("push", "out", "--to", published.registry, environ={"DOCKER_HOST": NOWHERE})
    assert pushed.status == 0, pushed.stderr
    assert digest_of(f"{published.prefix}/scores:2") == release["image"]["pinned"].partition("@")[2]
    # Built for the registry itself it is the very same.
    direct = published.build("in-image", "--push", environ={"DOCKER_HOST": NOWHERE}).release
    assert (direct["image"]["how"], direct["image"]["pinned"]) == ("unchanged", release["image"]["pinned"])


@one_store
def test_inspect_reads_a_layout_and_a_registry_without_an_engine(published: Project) -> None:
    published.build("in-image", "--push")
    published.build("load", "--push")
    build(published, "load", DOCKER_HOST=NOWHERE)
    nowhere = {"DOCKER_HOST": NOWHERE}

    def inspect(what: str) -> dict[str, Any]:
        done = published.mlimg("inspect", what, "--json", environ=nowhere)
        assert done.status == 0, done.stderr
        value: dict[str, Any] = json.loads(done.stdout)
        return value

    models = f"{published.prefix}/models/scores:1"
    found = {
        name: inspect(name)
        for name in (f"{published.prefix}/scores:1", f"{published.prefix}/server:1.0", models, f"{models}-modelpack")
    }
    kinds = [value["kind"] for value in found.values()]
    assert kinds == ["in-image image", "server image", "model image", "ModelPack artifact"]
    facts = {json.dumps(value["model"]) for value in found.values() if value["model"]}
    assert len(facts) == 1, "one model in three forms"
    assert found[models]["model"]["files"] == 1
    listed = inspect("oci:out")["images"]
    assert {image["name"]: image["model"] for image in listed if image["model"]} == {
        models: found[models]["model"],
        f"{models}-modelpack": found[models]["model"],
    }
    assert inspect(f"oci:out:{models}")["id"] == found[models]["id"]


@one_store
def test_a_run_that_is_killed_is_simply_run_again(published: Project) -> None:
    published.build("in-image", "--push")
    (published.folder / "model" / "weights.bin").write_bytes(os.urandom(96 << 20))
    published.set(model__version="2")
    layout = published.folder / "out"
    command = published.command("build", "--pattern", "in-image", "--output", "oci:out")
    process = subprocess.Popen(
        command, cwd=published.folder, env=published.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not any((layout / ".mlimg-parts").glob("*")) or not largest(layout / ".mlimg-parts") > 1 << 20:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert any((layout / ".mlimg-parts").iterdir()), "killed in the middle of a layer"
    assert names(layout) == []
    release = build(published, "in-image")
    check_whole(layout)
    assert not (layout / ".mlimg-parts").exists()
    assert names(layout)[-1] == release["image"]["reference"]


def largest(folder: Path) -> int:
    sizes = []
    for path in folder.glob("*"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return max(sizes, default=0)
