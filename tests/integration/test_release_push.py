"""What `--push` does to a registry, judged by its access log and by docker, skopeo and oras."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.projects import (
    INPUTS_LABEL,
    NOWHERE,
    Project,
    RegistryLog,
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

AccessLog = Callable[[Project], RegistryLog]
one_store = pytest.mark.parametrize("engine", ["graph"], indirect=True)


def layers(reference: str) -> list[str]:
    return [layer["digest"] for layer in manifest_of(reference)["layers"]]


@one_store
def test_server_bytes_go_once_and_tags_follow_the_newest_server(published: Project, access_log: AccessLog) -> None:
    log = access_log(published)
    first = published.build("in-image", "--push")
    image, server = f"{published.prefix}/scores", f"{published.prefix}/server"
    server_layers = layers(f"{server}:1.0")
    assert first.last_line == "everything is published"
    news = log.news()
    assert set(server_layers) == {*news.uploaded("server"), *news.mounted("server")} & set(server_layers)
    assert sorted(news.mounted("scores")) == sorted(server_layers), "what is in the registry is not sent again"
    assert layers(f"{image}:1")[: len(server_layers)] == server_layers
    assert news.tagged[-2:] == [f"{published.name}/scores:1-1.0", f"{published.name}/scores:1"], "tags come last"

    published.train(2)
    published.set(model__version="2")
    second = published.build("in-image", "--push").release
    news = log.news()
    assert second["server"]["how"] == "published"
    assert not {*news.uploaded(), *news.mounted()} & set(server_layers)
    assert len(news.uploaded("scores")) == 2, "the model's layer and the config"
    assert digest_of(f"{image}:2") == digest_of(f"{image}:2-1.0")

    old = {tag: digest_of(f"{image}:{tag}") for tag in ("1", "1-1.0", "2-1.0")}
    published.set(server__version="1.1", server__env={"ANSWER": "42"})
    third = published.build("in-image", "--push").release
    assert digest_of(f"{image}:2") == digest_of(f"{image}:2-1.1") == third["image"]["pinned"].partition("@")[2]
    assert digest_of(f"{image}:2") != old["2-1.0"]
    assert {tag: digest_of(f"{image}:{tag}") for tag in old} == old
    assert set(tags_of(image)) == {"1", "1-1.0", "2", "2-1.0", "2-1.1"}


def test_what_is_pushed_can_be_pulled_run_and_read(published: Project) -> None:
    weights, inputs = published.train(3), some_inputs()
    release = published.build("in-image", "--push").release
    reference = release["image"]["reference"]
    for name in published.images():
        published.engine.docker("image", "rm", "--force", name)
    published.engine.docker("pull", "--quiet", reference)
    port = free_port()
    container = published.engine.docker("run", "--detach", "--read-only", "-p", f"127.0.0.1:{port}:8080", reference)
    try:
        wait_until_ready(port)
        assert infer(port, "scores", inputs) == expected(weights, inputs)
    finally:
        published.engine.docker("rm", "--force", container)

    seen = json.loads(output("skopeo", "inspect", "--tls-verify=false", f"docker://{reference}"))
    assert seen["Digest"] == release["image"]["pinned"].partition("@")[2]
    assert seen["Labels"]["io.mlimg.model.digest"] == release["model"]["digest"]
    assert seen["Labels"][INPUTS_LABEL] == release["server_inputs"]
    manifest = manifest_of(reference)
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["layers"][-1]["mediaType"] == "application/vnd.oci.image.layer.v1.tar"
    assert manifest["annotations"]["org.opencontainers.image.base.digest"] == digest_of(release["server"]["reference"])


@one_store
def test_from_load_to_in_image_no_model_bytes_move(published: Project, access_log: AccessLog) -> None:
    log = access_log(published)
    load = published.build("load", "--push")
    assert load.last_line == "everything is published"
    model_layers = layers(f"{published.prefix}/models/scores:1")
    assert set(model_layers) <= set(log.news().uploaded("models/scores"))
    image = published.build("in-image", "--push").release["image"]
    news = log.news()
    assert set(model_layers) <= set(news.mounted())
    assert news.uploaded() == [manifest_of(image["reference"])["config"]["digest"]]
    assert image["moved_bytes"] == 0


@one_store
def test_the_fetched_model_answers(published: Project) -> None:
    weights, inputs = published.train(4), some_inputs()
    published.build("load")
    assert published.answer(inputs) == expected(weights, inputs)


@one_store
def test_with_a_published_server_no_engine_is_needed(published: Project) -> None:
    published.build("in-image", "--push")
    published.train(2)
    published.set(model__version="2")
    away = {"DOCKER_HOST": NOWHERE}
    release = published.build("in-image", "--push", environ=away).release
    assert release["server"]["how"] == "published"
    assert digest_of(f"{published.prefix}/scores:2") == release["image"]["pinned"].partition("@")[2]
    loaded = published.build("load", "--push", environ=away).release
    assert loaded["model"]["digest"] == release["model"]["digest"]
    # Its twin: a server that is not there has to be built.
    published.set(server__version="1.1")
    missing = published.build("in-image", "--push", environ=away)
    assert missing.status == 14, missing.stderr


@one_store
def test_ci_publishes_the_server_once_and_jobs_without_engine_deliver_models(published: Project) -> None:
    """With `--only server` no model is needed, and afterwards neither an engine nor a written platform."""
    (published.folder / "model" / "weights.json").unlink()
    (published.folder / "model").rmdir()
    made = published.mlimg("build", "--only", "server", "--push", "--json")
    assert made.status == 0, made.stderr
    server = json.loads(made.stdout)["server"]
    assert server["pinned"].partition("@")[2] == digest_of(f"{published.prefix}/server:1.0")
    assert tags_of(f"{published.prefix}/scores") == []
    assert not (published.folder / ".mlimg" / "release.json").exists()
    again = published.mlimg("build", "--only", "server", "--push", environ={"DOCKER_HOST": NOWHERE})
    assert again.stdout == f"server={server['pinned']}\n"
    assert again.last_line == "the server is published"

    weights, inputs = published.train(5), some_inputs()
    del published.spec["build"]["platform"]
    release = published.build("in-image", "--push", environ={"DOCKER_HOST": NOWHERE}).release
    assert release["server"]["how"] == "published"
    port = free_port()
    container = published.engine.docker(
        "run", "--detach", "-p", f"127.0.0.1:{port}:8080", release["image"]["reference"]
    )
    try:
        wait_until_ready(port)
        assert infer(port, "scores", inputs) == expected(weights, inputs)
    finally:
        published.engine.docker("rm", "--force", container)


@one_store
def test_the_server_alone_stays_in_the_engine_without_push(project: Project) -> None:
    made = project.mlimg("build", "--only", "server")
    assert made.status == 0, made.stderr
    assert project.inspect(f"{project.prefix}/server:1.0")["Config"]["Labels"][INPUTS_LABEL]
    assert made.stdout.startswith(f"server={project.prefix}/server:1.0")
    assert project.mlimg("build", "--only", "server", "--metadata-file", "x").status == 2


@one_store
@pytest.mark.parametrize("pattern", ["in-image", "load"])
def test_another_model_under_a_published_version_is_a_conflict(
    published: Project, access_log: AccessLog, pattern: str
) -> None:
    """E14: nothing moves; the same content is a success that moves nothing either."""
    log = access_log(published)
    first = published.build(pattern, "--push").release
    log.news()
    again = published.build(pattern, "--push").release
    assert log.news().writes == []
    assert again | {"seconds": 0} == first | {
        "seconds": 0,
        "server": first["server"] | {"how": "published", "pinned": again["server"]["pinned"]},
        "model": again["model"],
        "image": again["image"],
    }
    assert [part and part["pinned"] for part in (again["model"], again["image"])] == [
        part and part["pinned"] for part in (first["model"], first["image"])
    ]
    published.train(2)
    refused = published.build(pattern, "--push")
    assert refused.status == 19
    assert "raise model.version" in refused.stderr
    assert log.news().writes == []


@one_store
def test_another_server_under_a_published_version_is_a_conflict_only_when_pushed(
    published: Project, access_log: AccessLog
) -> None:
    """E14: a build that stays here goes on."""
    log = access_log(published)
    published.build("in-image", "--push")
    published.set(server__env={"ANSWER": "42"})
    log.news()
    for pattern in ("in-image", "load"):
        refused = published.build(pattern, "--push")
        assert refused.status == 19
        assert "raise server.version" in refused.stderr
    local = published.build("in-image")
    assert local.release["server"]["how"] == "built"
    assert "stays on this machine" in local.stderr
    assert log.news().writes == []
    published.set(server__version="1.1")
    assert published.build("in-image", "--push").status == 0


@one_store
def test_the_tag_of_a_model_and_a_server_never_moves(published: Project) -> None:
    image = f"{published.prefix}/scores"
    published.build("in-image", "--push")
    fixed = digest_of(f"{image}:1-1.0")
    published.set(server__version="1.1", server__env={"ANSWER": "42"})
    published.build("in-image", "--push")
    newest = digest_of(f"{image}:1-1.1")
    # As a run leaves it that was killed between the two tags. Annotations made now would be others.
    output("oras", "tag", "--plain-http", f"{image}:1-1.0", "1")
    repaired = published.build("in-image", "--push", environ={"SOURCE_DATE_EPOCH": "1700000000"}).release
    assert repaired["image"]["how"] == "tagged"
    assert digest_of(f"{image}:1") == digest_of(f"{image}:1-1.1") == newest
    assert digest_of(f"{image}:1-1.0") == fixed


@one_store
def test_a_published_version_in_a_named_folder_is_not_replaced(project: Project) -> None:
    """E14: the default store may be replaced, one that the spec names is published."""
    project.set(model__store="./models")
    project.build("load")
    kept = {path: path.read_bytes() for path in (project.folder / "models").rglob("*") if path.is_file()}
    assert project.build("load").release["model"]["how"] == "unchanged"
    project.train(2)
    refused = project.build("load")
    assert refused.status == 19
    assert "raise model.version" in refused.stderr
    assert {path: path.read_bytes() for path in (project.folder / "models").rglob("*") if path.is_file()} == kept


@one_store
def test_a_server_from_another_registry_is_carried_over_once(
    published: Project, registry_auth: str, tmp_path: Path
) -> None:
    """Credentials come from docker's configuration, and go to the registry that asks for them."""
    token = base64.b64encode(b"alice:secret").decode()
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {registry_auth: {"auth": token}}}))
    image = f"{registry_auth}/{published.name}/scores"
    published.set(image=image)
    refused = published.build("in-image", "--push", environ={"DOCKER_CONFIG": str(tmp_path / "none")})
    assert refused.status == 15, refused.stderr
    assert tags_of(f"{published.prefix}/server") == [], "refused before anything moved"
    known = {"DOCKER_CONFIG": str(tmp_path / "docker")}
    first = published.build("in-image", "--push", environ=known).release
    server_bytes = sum(layer["size"] for layer in manifest_of(f"{published.prefix}/server:1.0")["layers"])
    assert first["image"]["moved_bytes"] > server_bytes
    inspected = output(*("skopeo", "inspect", "--tls-verify=false", "--creds", "alice:secret", f"docker://{image}:1"))
    assert json.loads(inspected)["Digest"] == first["image"]["pinned"].partition("@")[2]
    published.train(2)
    published.set(model__version="2")
    second = published.build("in-image", "--push", environ=known).release
    assert second["image"]["moved_bytes"] < server_bytes / 100
