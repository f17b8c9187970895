"""What `mlimg clean` takes out of an engine, and what it leaves; only images of this test are touched."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from mlimg.clean import Leftover, engine_leftovers
from mlimg.engine import docker
from mlimg.runtime.reference import SERVER_INPUTS_LABEL
from tests.support.engines import Engine


@dataclass(frozen=True)
class Images:
    """Images of one test, in one engine."""

    engine: Engine
    base: str
    name: str

    def make(self, *tags: str) -> str:
        """A server image that no other equals, under these names; its ID."""
        labels = f"LABEL {SERVER_INPUTS_LABEL}={uuid.uuid4().hex} test={self.name}"
        words = ["build", "--quiet", "--provenance=false", *(word for tag in tags for word in ("--tag", tag)), "-"]
        self.engine.docker(*words, stdin=f"FROM {self.base}\n{labels}\n")
        return self.engine.docker("image", "inspect", "--format", "{{.Id}}", tags[0])

    def leftovers(self) -> list[Leftover]:
        """What `clean` would remove, of this test's."""
        mine = {self.name, *(image[:19] for image in self.ids())}
        found = engine_leftovers(docker.Engine.connect(self.engine.env))
        return [leftover for leftover in found if any(word in leftover.what for word in mine)]

    def ids(self) -> set[str]:
        """The images that are there."""
        return set(
            self.engine.docker(
                "image", "ls", "--all", "--quiet", "--no-trunc", "--filter", f"label=test={self.name}"
            ).split()
        )


@pytest.fixture
def images(engine: Engine, base_image: str) -> Iterator[Images]:
    images = Images(engine, base_image, f"clean-{uuid.uuid4().hex[:12]}")
    yield images
    for image in images.ids():
        engine.docker("image", "rm", "--force", image)


def test_an_image_that_lost_its_name_goes_and_its_successor_stays(images: Images) -> None:
    name = f"mlimg.local/{images.name}:1"
    first, second = images.make(name), images.make(f"{name}.1")
    images.engine.docker("image", "tag", second, name)
    assert images.ids() == {first, second}
    [leftover] = images.leftovers()
    assert leftover.what == f"image {first[:19]}"
    assert leftover.size_bytes > 0
    leftover.remove()
    assert images.ids() == {second}
    assert not images.leftovers()


def test_a_server_that_only_its_key_names_goes_and_one_with_a_version_stays(images: Images) -> None:
    repository = f"mlimg.local/{images.name}"
    old = images.make(f"{repository}:key-0123456789ab", f"{repository}:1.0")
    assert not images.leftovers()
    new = images.make(f"{repository}:key-ba9876543210", f"{repository}:1.0")
    [leftover] = images.leftovers()
    assert leftover.what == f"former server {repository}:key-0123456789ab"
    leftover.remove()
    assert old not in images.ids()
    assert new in images.ids()


def test_the_private_name_of_a_base_goes_when_the_base_has_no_other(images: Images) -> None:
    private, public = f"mlimg.local/base:{images.name}", f"mlimg.local/{images.name}:3.13"
    base = images.make(private, public)
    assert not images.leftovers()
    images.engine.docker("image", "rm", public)
    leftovers = [leftover for leftover in images.leftovers() if leftover.what.startswith("former base")]
    assert [leftover.what for leftover in leftovers] == [f"former base {private}"]
    leftovers[0].remove()
    assert base not in images.ids()


def test_a_name_that_a_killed_build_left_goes_and_the_image_keeps_its_own(images: Images) -> None:
    temporary, kept = f"mlimg.local/build:{images.name}", f"mlimg.local/{images.name}:1"
    image = images.make(temporary, kept)
    [leftover] = images.leftovers()
    assert leftover.what == f"build {temporary}"
    leftover.remove()
    assert images.ids() == {image}
    assert images.engine.docker("image", "inspect", "--format", '{{join .RepoTags " "}}', image) == kept
