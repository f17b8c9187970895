"""Both patterns from one spec: what comes out answers, is found again, and is the same wherever it is."""

import json
import tarfile
from pathlib import Path

import pytest

from tests.support.engines import Engine, Store
from tests.support.projects import Project, expected, manifest_of, some_inputs

one_store = pytest.mark.parametrize("engine", ["graph"], indirect=True)


def test_both_patterns_answer_as_the_model_does(project: Project) -> None:
    weights, inputs = project.train(5), some_inputs()
    in_image = project.build("in-image").release
    assert in_image["server"]["how"] == "built"
    assert in_image["image"]["how"] == "appended"
    assert project.answer(inputs) == expected(weights, inputs)
    load = project.build("load").release
    assert load["server"] == in_image["server"] | {"how": "reused"}
    assert load["model"]["digest"] == in_image["model"]["digest"]
    assert project.answer(inputs) == expected(weights, inputs)


def test_a_second_build_builds_nothing_and_a_new_model_moves_alone(project: Project) -> None:
    (project.folder / "model" / "weights.bin").write_bytes(bytes(64 << 20))  # a layer of its own
    first = project.build("in-image").release
    before = project.inspect(first["image"]["reference"])
    again = project.build("in-image").release
    assert (again["server"]["how"], again["image"]["how"]) == ("reused", "unchanged")
    assert again["image"]["pinned"] == first["image"]["pinned"]
    assert again["image"]["digest"] == first["image"]["digest"]
    assert again["image"]["moved_bytes"] == 0

    project.train(2)
    project.set(model__version="2")
    second = project.build("in-image")
    assert second.release["server"]["how"] == "reused"
    assert second.release["server"]["pinned"] == first["server"]["pinned"]
    assert second.release["image"]["moved_bytes"] < 1 << 20
    assert "build " not in second.stderr
    after = project.inspect(second.release["image"]["reference"])
    assert after["RootFS"]["Layers"][:-1] == before["RootFS"]["Layers"][:-1]
    assert after["RootFS"]["Layers"][-1] != before["RootFS"]["Layers"][-1]
    assert project.inspect(f"{project.prefix}/scores:2-1.0")["Id"] == after["Id"]
    # What was built first is as it was.
    assert project.inspect(first["image"]["reference"])["Id"] == before["Id"]


@one_store
def test_a_second_load_build_moves_nothing(project: Project) -> None:
    first = project.build("load").release
    stored = {path: path.stat().st_ino for path in (project.folder / ".mlimg" / "store").rglob("*")}
    second = project.build("load").release
    assert (second["server"]["how"], second["model"]["how"]) == ("reused", "unchanged")
    assert second["model"]["pinned"] == first["model"]["pinned"]
    assert {path: path.stat().st_ino for path in (project.folder / ".mlimg" / "store").rglob("*")} == stored


@one_store
def test_in_the_default_store_a_version_is_replaced(project: Project) -> None:
    """E14: what nobody has published may change."""
    project.build("load")
    weights, inputs = project.train(9), some_inputs()
    replaced = project.build("load")
    assert replaced.release["model"]["how"] == "packed"
    assert project.answer(inputs) == expected(weights, inputs)


def test_an_image_has_one_identity_on_both_stores_and_in_a_registry(
    request: pytest.FixtureRequest, base_image: str, registry: str, tmp_path: Path, user_cache: Path
) -> None:
    seen: dict[str, str] = {}
    stores: tuple[Store, ...] = ("graph", "containerd")
    for store in stores:
        engine = Engine(request.getfixturevalue(f"{store}_engine"), store)
        with Project(tmp_path / store, engine, base_image, user_cache, registry) as project:
            release = project.build("in-image").release
            seen[f"{store} record"] = release["image"]["digest"]
            seen[store] = saved_config(project, release["image"]["reference"], tmp_path / f"{store}.tar")
            release = project.build("in-image", "--push").release
            seen[f"{store} registry record"] = release["image"]["digest"]
            seen[f"{store} registry"] = manifest_of(release["image"]["reference"])["config"]["digest"]
    assert len(set(seen.values())) == 1, seen


def saved_config(project: Project, reference: str, archive: Path) -> str:
    """The digest of an image's config as `docker save` writes it."""
    project.engine.docker("save", "--output", str(archive), reference)
    with tarfile.open(archive) as saved:
        member = saved.extractfile("manifest.json")
        assert member
        (image,) = json.load(member)
    return "sha256:" + Path(image["Config"]).stem
