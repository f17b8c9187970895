"""A release whose model lies in an object store: built, run and asked, as with any other store."""

import json

import pytest

from tests.support.projects import Project, expected, infer, some_inputs
from tests.support.swift import Swift

one_store = pytest.mark.parametrize("engine", ["graph"], indirect=True)


def stored(swift: Swift, project: Project) -> set[str]:
    """What the bucket has of this project."""
    keys = swift.keys()
    return {key.removeprefix(f"{project.name}/") for key in keys if key.startswith(f"{project.name}/")}


@one_store
def test_a_server_fetches_its_model_from_a_bucket(project: Project, swift: Swift) -> None:
    weights, inputs = project.train(5), some_inputs()
    project.set(model__store=f"s3://models/{project.name}")
    project.environ |= swift.environ
    planned = project.mlimg("plan", "--pattern", "load")
    assert planned.status == 0, planned.stderr
    assert not stored(swift, project)
    release = project.build("load").release
    assert release["model"]["how"] == "pushed"
    assert stored(swift, project) == {"scores/1/.claim", "scores/1/mlimg.manifest", "scores/1/weights.json"}

    start = ("run", "--detach", "--port", "0", "--ready-timeout", "60", "--json")
    refused = project.mlimg(*start)
    assert refused.status == 15, refused.stderr  # credentials are the user's to give
    passed = [word for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") for word in ("-e", name)]
    ran = project.mlimg(*start, *passed)
    assert ran.status == 0, ran.stderr
    try:
        port = int(json.loads(ran.stdout)["url"].rpartition(":")[2])
        assert infer(port, "scores", inputs) == expected(weights, inputs)
    finally:
        project.mlimg("run", "--stop")

    project.train(6)
    other = project.build("load")
    assert other.status == 19
