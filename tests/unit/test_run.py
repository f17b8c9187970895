"""What a container is given: the model's place, the ports, the equal command line, and how its end is told."""

import shlex
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, cast

import pytest

from mlimg.engine.containers import Container, RunOptions
from mlimg.record import Part, Release
from mlimg.run import PORT_LABEL, Wishes, ended, place_model, run_options, started
from mlimg.runtime.errors import EngineError, ModelError, UsageError

if TYPE_CHECKING:
    from mlimg.engine.docker import Engine

DIGEST = "sha256:" + "a" * 64


def part(reference: str, pinned: str) -> Part:
    return Part(reference, DIGEST, pinned, 1, published=False, how="built")


IN_IMAGE = Release(
    pattern="in-image",
    name="digits",
    server=part("digits-server:1.0", "sha256:" + "1" * 64),
    model=part("digits:3", DIGEST),
    image=part("digits:3", "sha256:" + "2" * 64),
    model_version="3",
    server_version="1.0",
    server_inputs=DIGEST,
    server_key=DIGEST,
)


def load(uri: str) -> Release:
    return replace(IN_IMAGE, pattern="load", image=None, model=part(uri, uri))


def test_a_model_in_the_image_needs_no_place() -> None:
    options = run_options(IN_IMAGE, place_model(IN_IMAGE, linux=True), Wishes(port=9000), Path("/p"))
    assert options.image == IN_IMAGE.image.pinned  # type: ignore[union-attr]
    assert options.ports == {8080: 9000}
    assert not options.env
    assert not options.mounts


def test_a_local_store_is_mounted_and_pinned(tmp_path: Path) -> None:
    release = load(f"file://{tmp_path}@{DIGEST}")
    options = run_options(release, place_model(release, linux=True), Wishes(), Path("/p"))
    assert options.image == release.server.pinned
    assert options.mounts == {PurePosixPath("/mnt/mlimg/digits/3"): tmp_path}
    assert options.env == {"MLIMG_MODEL": f"file:///mnt/mlimg/digits/3@{DIGEST}"}


def several(*uris: str) -> Release:
    together = " ".join(uris)
    models = {uri.rpartition("/")[2].partition(":")[0]: uri for uri in uris}
    return replace(load("oci://a/b:1"), name="both", model=part(together, together), models=models)


def test_several_models_of_a_local_store_are_mounted_side_by_side(tmp_path: Path) -> None:
    folders = {"digits": tmp_path / "digits" / "3", "wine": tmp_path / "wine" / "7"}
    for folder in folders.values():
        folder.mkdir(parents=True)
    uris = {name: f"file://{folder}@{DIGEST}" for name, folder in folders.items()}
    placement = place_model(replace(several(*uris.values()), models=uris), linux=True)
    assert placement.mounts == {
        PurePosixPath("/mnt/mlimg/digits/3"): folders["digits"],
        PurePosixPath("/mnt/mlimg/wine/7"): folders["wine"],
    }
    assert placement.env == {"MLIMG_MODEL": f"file:///mnt/mlimg/digits/3@{DIGEST} file:///mnt/mlimg/wine/7@{DIGEST}"}


def test_several_models_of_a_loopback_registry_are_reached_as_one_is() -> None:
    uris = [f"oci://127.0.0.1:5000/models/{name}:3@{DIGEST}" for name in ("digits", "wine")]
    assert place_model(several(*uris), linux=True).env == {"MLIMG_MODEL": " ".join(uris)}
    assert place_model(several(*uris), linux=True).host_network
    elsewhere = place_model(several(*uris), linux=False)
    assert elsewhere.env["MLIMG_MODEL"] == " ".join(uris).replace("127.0.0.1", "host.docker.internal")
    assert elsewhere.extra_hosts == {"host.docker.internal": "host-gateway"}


def test_a_local_model_that_is_gone_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not there any more"):
        place_model(load(f"file://{tmp_path}/gone@{DIGEST}"), linux=True)


def test_a_registry_elsewhere_is_fetched_from_by_digest() -> None:
    uri = f"oci://registry.example.com/models/digits:3@{DIGEST}"
    options = run_options(load(uri), place_model(load(uri), linux=True), Wishes(), Path("/p"))
    assert options.env == {"MLIMG_MODEL": uri}
    assert options.network == ""


def test_a_registry_of_plain_http_is_named_to_the_container() -> None:
    uri = f"oci://registry.lab:5000/models/digits:3@{DIGEST}"
    release = replace(load(uri), insecure_registries=("registry.lab:5000",))
    assert place_model(release, linux=True).env["MLIMG_INSECURE_REGISTRIES"] == "registry.lab:5000"


def test_a_container_is_told_where_an_object_store_is_and_not_who_may_read_it() -> None:
    uri = f"s3://bucket/models/digits/3@{DIGEST}"
    place = {"AWS_ENDPOINT_URL": "https://s3.lab", "AWS_REGION": "eu-west-1"}
    environ = {**place, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "s3cret", "AZURE_STORAGE_SAS_TOKEN": "sig"}
    placement = place_model(load(uri), linux=True, environ=environ)
    assert placement.env == {"MLIMG_MODEL": uri, **place}
    assert not placement.host_network


def test_a_loopback_object_store_is_reached_like_a_loopback_registry() -> None:
    uri = f"az://box/models/digits/3@{DIGEST}"
    environ = {"AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:10000/account"}
    assert place_model(load(uri), linux=True, environ=environ).host_network
    placement = place_model(load(uri), linux=False, environ=environ)
    assert placement.env == {
        "MLIMG_MODEL": uri,
        "AZURE_STORAGE_ENDPOINT": "http://host.docker.internal:10000/account",
        "MLIMG_INSECURE_REGISTRIES": "host.docker.internal:10000",
    }
    assert placement.extra_hosts == {"host.docker.internal": "host-gateway"}


def test_a_loopback_registry_is_reached_over_the_hosts_network_on_linux() -> None:
    uri = f"oci://127.0.0.1:5000/models/digits:3@{DIGEST}"
    placement = place_model(load(uri), linux=True)
    options = run_options(load(uri), placement, Wishes(port=9000), Path("/p"))
    assert options.network == "host"
    assert options.ports == {}
    assert options.env == {"MLIMG_MODEL": uri, "HOST": "127.0.0.1", "PORT": "9000"}
    assert "host's network" in placement.note


def test_a_loopback_registry_is_reached_by_the_hosts_name_elsewhere() -> None:
    uri = f"oci://localhost:5000/models/digits:3@{DIGEST}"
    placement = place_model(load(uri), linux=False)
    options = run_options(load(uri), placement, Wishes(), Path("/p"))
    assert options.env == {
        "MLIMG_MODEL": f"oci://host.docker.internal:5000/models/digits:3@{DIGEST}",
        "MLIMG_INSECURE_REGISTRIES": "host.docker.internal:5000",
    }
    assert options.extra_hosts == {"host.docker.internal": "host-gateway"}


def test_a_server_that_is_told_another_port_is_published_from_there() -> None:
    options = run_options(IN_IMAGE, place_model(IN_IMAGE, linux=True), Wishes(env={"PORT": "5000"}), Path("/p"))
    assert options.ports == {5000: 8080}


def test_a_server_that_speaks_grpc_is_published_with_its_second_port() -> None:
    release = replace(IN_IMAGE, grpc_port=8081)
    placement = place_model(release, linux=True)
    assert run_options(release, placement, Wishes(), Path("/p")).ports == {8080: 8080, 8081: 8081}
    moved = Wishes(port=9000, grpc_port=9001, env={"MLIMG_GRPC_PORT": "5001"})
    assert run_options(release, placement, moved, Path("/p")).ports == {8080: 9000, 5001: 9001}


def test_grpc_on_the_hosts_network_listens_where_it_was_wished() -> None:
    release = replace(load(f"oci://127.0.0.1:5000/models/digits:3@{DIGEST}"), grpc_port=8081)
    options = run_options(release, place_model(release, linux=True), Wishes(grpc_port=9001), Path("/p"))
    assert (options.ports, options.env["MLIMG_GRPC_PORT"]) == ({}, "9001")


def test_the_equal_command_line_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    release = load(f"file://{folder}@{DIGEST}")
    wishes = Wishes(env={"NOTE": "it's"}, gpus="all")
    words = shlex.split(run_options(release, place_model(release, linux=True), wishes, folder).command_line())
    assert words[:2] == ["docker", "run"]
    assert words[-1] == release.server.pinned
    assert f"type=bind,source={folder},target=/mnt/mlimg/digits/3,readonly" in words
    assert "NOTE=it's" in words
    assert words[words.index("--gpus") + 1] == "all"


def test_a_container_that_dies_speaks_with_its_own_status() -> None:
    error = ended(12, ("error: no model",))
    assert isinstance(error, ModelError)
    assert (error.status, error.kind, error.log) == (12, "model", ("error: no model",))


@pytest.mark.parametrize(("status", "told"), [(137, 137), (1, 1), (0, 14), (None, 14)])
def test_statuses_that_are_not_ours_are_the_engines_affair(status: int | None, told: int) -> None:
    """A server that ends with 0 before it is ready has failed all the same."""
    error = ended(status, ())
    assert isinstance(error, EngineError)
    assert error.status == told


class Refusing:
    """An engine that starts nothing."""

    def __init__(self, words: str) -> None:
        self.words = words

    def run_container(self, options: RunOptions) -> Container:
        raise EngineError(f"the engine could not start a container of {options.image}: {self.words}")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("Bind for 127.0.0.1:8080 failed: port is already allocated", "port 8080 of this machine is in use"),
        ("listen tcp4 127.0.0.1:8080: bind: address already in use", "port 8080 of this machine is in use"),
        ("no such runtime", "no such runtime"),
    ],
)
def test_a_port_in_use_is_told_as_that(words: str, told: str) -> None:
    options = RunOptions(image="digits:1", labels={PORT_LABEL: "8080"})
    with pytest.raises(EngineError, match=told):
        started(cast("Engine", Refusing(words)), options, "/v2/health/ready")


def test_of_two_ports_either_may_be_in_use() -> None:
    options = RunOptions(image="digits:1", ports={8080: 8080, 8081: 8081}, labels={PORT_LABEL: "8080"})
    with pytest.raises(EngineError, match="port 8080 or 8081 of this machine") as caught:
        started(cast("Engine", Refusing("port is already allocated")), options, "/v2/health/ready")
    assert "--grpc-port" in caught.value.hint
