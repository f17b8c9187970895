"""Several models in one server, as containers: fetched, mounted, and in the image; and built from one spec."""

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlimg.pack import pack
from tests.integration.test_container import LOCKED, Container, container
from tests.support.engines import Engine
from tests.support.models import DictSource, write_tree
from tests.support.projects import Project, expected, infer, some_inputs, wait_until_ready
from tests.support.servers import ask, free_port, rows, running, server_folder

MODELS = {"scores": 1, "other": 2}  # names, and the seeds of what is trained


@pytest.fixture(scope="module")
def release(
    engine_host: str,
    base_image: str,
    registry: str,
    tmp_path_factory: pytest.TempPathFactory,
    user_cache: Path,
) -> Iterator[Project]:
    """One server image, and two models: in the registry, and in the folder `store`."""
    folder = tmp_path_factory.mktemp("several") / "project"
    with Project(folder, Engine.at(engine_host), base_image, user_cache, registry) as project:
        for name, seed in MODELS.items():
            project.train(seed)
            for store in (f"oci://{project.prefix}/models", "./store"):
                project.set(model__name=name, model__store=store)
                done = project.build("load")
                assert done.status == 0, done.stderr
        yield project


@contextmanager
def serving(project: Project, *options: str, image: str = "server:1.0") -> Iterator[tuple[Container, int]]:
    """A container on the host's network, which reaches the registry there, and its port."""
    port = free_port()
    options = ("--network", "host", "--env", f"PORT={port}", "--env", "HOST=127.0.0.1", *options)
    with container(project, image, *options) as served:
        yield served, port


def own_answer(project: Project, name: str) -> list[float]:
    """What a model itself answers."""
    weights = json.loads((project.folder / "store" / name / "1" / "weights.json").read_text())
    return expected(weights, some_inputs())


def references(project: Project, *names: str) -> str:
    return "MLIMG_MODEL=" + ", ".join(f"oci://{project.prefix}/models/{name}:1" for name in names)


def test_two_fetched_models_answer_and_a_third_that_is_not_there_says_why(release: Project) -> None:
    wanted = references(release, "scores", "absent", "other")
    with serving(release, "--tmpfs", "/cache:mode=1777", "--env", wanted) as (served, port):
        wait_until_ready(port)
        assert own_answer(release, "scores") != own_answer(release, "other")
        for name in MODELS:
            assert infer(port, name, some_inputs()) == own_answer(release, name)
            assert ask(port, f"/v2/models/{name}/ready").status == 200
        absent = ask(port, "/v2/models/absent/ready")
        assert absent.status == 503
        assert f"{release.prefix}/models/absent" in absent.json["error"]
        assert ask(port, "/v2/models/unknown/ready").status == 404
        told = ask(port, "/v2/health/ready").json["models"]
        assert [(model["model"], model["ready"], model.get("bytes", 0) > 0) for model in told] == [
            ("scores", True, True),
            ("absent", False, False),
            ("other", True, True),
        ]
        index = ask(port, "/v2/repository/index", b"").json
        states = {entry["name"]: entry["state"] for entry in index}
        assert states == {"scores": "READY", "absent": "UNAVAILABLE", "other": "READY"}
        assert served.stop()[0] == 0


def test_when_no_model_can_be_had_the_container_ends_with_a_line_for_each(release: Project) -> None:
    wanted = references(release, "absent", "gone")
    with serving(release, "--tmpfs", "/cache:mode=1777", "--env", wanted) as (served, _):
        assert release.engine.docker("wait", served.id) == "16"
        lines = served.logs().splitlines()
        assert len([line for line in lines if "failed: " in line]) == 2
        assert lines[-1].startswith("error: ")


def test_an_altered_model_on_a_volume_does_not_take_the_other_down(release: Project, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(release.folder / "store", store)
    altered = store / "other" / "1" / "weights.json"
    altered.write_bytes(altered.read_bytes().replace(b"1", b"2", 1))
    uris = "\n".join(f"file:///mnt/store/{name}/1" for name in MODELS)
    with serving(release, "--volume", f"{store}:/mnt/store:ro", "--env", f"MLIMG_MODEL={uris}") as (_, port):
        wait_until_ready(port)
        assert infer(port, "scores", some_inputs()) == own_answer(release, "scores")
        refused = ask(port, "/v2/models/other/ready")
        assert refused.status == 503
        assert "was altered" in refused.json["error"]


def test_models_mounted_side_by_side_need_no_setting(release: Project) -> None:
    store = release.folder / "store"
    mounts = [word for name in MODELS for word in ("--volume", f"{store}/{name}/1:/mnt/models/{name}:ro")]
    with serving(release, *mounts, *LOCKED, "--user", "12345:0") as (_, port):
        wait_until_ready(port)
        for name in MODELS:
            assert infer(port, name, some_inputs()) == own_answer(release, name)


SLOW = """\
import time

def load(model_dir, options):
    return None

def predict(model, inputs):
    time.sleep(inputs["input"].flat[0])
    return inputs
"""


def test_what_is_asked_of_a_model_is_answered_though_another_never_came(tmp_path: Path) -> None:
    model = pack(DictSource({"weights": b"1"}), name="here", version="1", framework="custom", format="custom")
    here = write_tree(tmp_path / "here" / "1", {"weights": b"1", "mlimg.manifest": model.manifest_bytes})
    environ = {
        "MLIMG_MODEL": f"file://{here} oci://127.0.0.1:{free_port()}/never:1",  # where nobody listens
        "MLIMG_STORE_DIR": str(tmp_path),
        "MLIMG_MODEL_DIR": str(tmp_path / "models"),
        "MLIMG_SERVER_DIR": str(server_folder(tmp_path / "server", SLOW)),
    }
    with running(environ) as started:
        started.wait_until(503)
        deadline = time.monotonic() + 60
        while ask(started.port, "/v2/models/here/ready").status != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert started.ready() == 503
        with ThreadPoolExecutor(1) as asking:
            reply = asking.submit(ask, started.port, "/v2/models/here/infer", rows([[2.0]]))
            time.sleep(0.5)
            started.signal()
            assert reply.result().status == 200
        assert started.end()[0] == 0


@pytest.fixture(scope="module")
def both(release: Project) -> Project:
    """The same project with a spec of several models, whose sources are what the store has of them."""
    weights = {name: release.folder / "store" / name / "1" / "weights.json" for name in MODELS}
    for name, path in weights.items():
        (release.folder / name).mkdir()
        shutil.copy(path, release.folder / name)
    del release.spec["model"]
    store = f"oci://{release.prefix}/models"
    release.spec["version"] = "5"
    release.spec["models"] = [{"name": name, "version": "1", "source": f"./{name}", "store": store} for name in MODELS]
    return release


def answers_of_both(project: Project) -> None:
    """Run the last release, and compare what each of its models answers with the model."""
    ran = project.mlimg("run", "--detach", "--port", "0", "--ready-timeout", "60", "--json")
    assert ran.status == 0, ran.stderr
    try:
        port = int(json.loads(ran.stdout)["url"].rpartition(":")[2])
        for name in MODELS:
            assert infer(port, name, some_inputs()) == own_answer(project, name)
        asked = project.mlimg("predict", str(project.folder / "mlimg.yaml"), ".")
        assert (asked.status, "scores, other" in asked.stderr) == (2, True), asked.stderr
    finally:
        project.mlimg("run", "--stop")


def test_an_image_is_built_with_several_models(both: Project) -> None:
    built = both.build("in-image").release
    assert built["models"] == {name: f"{name}:1" for name in MODELS}
    assert built["image"]["reference"] == f"{both.prefix}/scores:5"
    answers_of_both(both)
    assert both.build("in-image").release["image"]["digest"] == built["image"]["digest"]
    pushed = both.build("in-image", "--push").release
    assert pushed["image"]["published"]
    assert both.build("in-image", "--push").release["image"]["how"] == "unchanged"
    assert both.mlimg("verify", f"{both.prefix}/scores:5").status == 0


def test_an_image_of_several_models_serves_those_that_are_named(both: Project) -> None:
    assert both.build("in-image").status == 0
    with serving(both, "--env", references(both, "other"), image="scores:5") as (_, port):
        wait_until_ready(port)
        assert infer(port, "other", some_inputs()) == own_answer(both, "other")
        assert ask(port, "/v2/models/scores/ready").status == 404
    with serving(both, "--env", references(both, "other", "third"), image="scores:5") as (served, _):
        assert both.engine.docker("wait", served.id) == "19"


def test_a_server_is_given_several_models_that_were_published_one_by_one(both: Project) -> None:
    built = both.build("load").release
    published = {name: f"oci://{both.prefix}/models/{name}:1@sha256:" for name in MODELS}
    assert all(built["models"][name].startswith(start) for name, start in published.items())
    assert built["model"]["pinned"] == " ".join(built["models"].values())
    assert built["model"]["how"] == "unchanged"  # they are what `model:` published before
    answers_of_both(both)
    assert both.build("load", "--no-push").status == 0
    answers_of_both(both)


def test_a_changed_model_of_several_is_another_version_of_all(both: Project) -> None:
    assert both.build("in-image", "--push").status == 0
    weights = both.folder / "other" / "weights.json"
    before = weights.read_bytes()
    try:
        weights.write_bytes(before.replace(b"1", b"2", 1))
        again = both.build("in-image", "--push")
        assert again.status == 19
        assert "published with another model" in again.stderr
    finally:
        weights.write_bytes(before)
