import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlimg.plan import ModelPlan, Plan
from mlimg.record import Part, Release, read_record, record_folder, release_of, write_record
from mlimg.runtime.errors import LocalIOError, UsageError
from mlimg.runtime.reference import ImageReference
from mlimg.spec.schema import Pattern
from tests.support.plans import server_plan

PART = Part(
    "registry.example.com/digits:3", "sha256:" + "1" * 64, "sha256:" + "2" * 64, 10, published=False, how="built"
)
RELEASE = Release(
    pattern="in-image",
    name="digits",
    server=PART,
    model=replace(PART, how="packed"),
    model_version="3",
    server_version="1.0",
    server_inputs="sha256:" + "3" * 64,
    server_key="sha256:" + "4" * 64,
    image=replace(PART, how="appended"),
    tags=("registry.example.com/digits:3",),
    unpublished=("registry.example.com/digits:3",),
)


def test_a_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    for release in (RELEASE, replace(RELEASE, image=None, unpublished=())):
        write_record(tmp_path, release)
        assert read_record(tmp_path) == release


def test_git_never_sees_the_folder_of_the_record(tmp_path: Path) -> None:
    write_record(tmp_path, RELEASE)
    assert (record_folder(tmp_path) / ".gitignore").read_text() == "*\n"
    assert sorted(path.name for path in record_folder(tmp_path).iterdir()) == [".gitignore", "release.json"]


def test_without_a_record_the_next_step_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing has been built") as caught:
        read_record(tmp_path)
    assert "mlimg build" in caught.value.hint


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schemaVersion": 2}', '{"schemaVersion": 1, "server": {}}'])
def test_a_damaged_record_is_an_error_of_the_file(tmp_path: Path, content: str) -> None:
    write_record(tmp_path, RELEASE)
    (record_folder(tmp_path) / "release.json").write_text(content)
    with pytest.raises(LocalIOError, match=r"release\.json"):
        read_record(tmp_path)


def test_a_file_where_the_folder_should_be_is_an_error_of_the_disk(tmp_path: Path) -> None:
    record_folder(tmp_path).write_text("")
    with pytest.raises(LocalIOError, match="File exists"):
        write_record(tmp_path, RELEASE)


def test_a_key_of_a_newer_version_is_passed_over(tmp_path: Path) -> None:
    path = write_record(tmp_path, RELEASE)
    path.write_text(json.dumps({**json.loads(path.read_text()), "later": 1}))
    assert read_record(tmp_path) == RELEASE


def test_what_runs_is_the_image_or_else_the_server() -> None:
    assert RELEASE.runnable.how == "appended"
    assert replace(RELEASE, image=None).runnable.how == "built"


@pytest.mark.parametrize(
    ("template", "options", "port"),
    [
        ("sklearn", {"grpc": True}, 8081),
        ("sklearn", {}, None),
        ("kserve", {}, None),  # not a server of ours
    ],
)
def test_the_record_tells_where_grpc_is_spoken(template: str, options: dict[str, bool], port: int | None) -> None:
    model = ModelPlan(
        "digits",
        "3",
        "sklearn",
        "skops",
        "/m",
        follow_links=False,
        store="/s",
        store_is_named=False,
        allow_pickle=False,
    )
    image = ImageReference.parse("registry.test/digits:3")
    plan = Plan(Pattern.IN_IMAGE, image, server_plan(template, options=options), model)
    assert release_of(plan, "", PART, PART, tags=(), unpublished=()).grpc_port == port
