"""Which image a server stands on, in an engine that is told what it has."""

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from mlimg.append import Image, Layer
from mlimg.engine.base import resolve_base
from mlimg.engine.docker import Engine, EngineImage
from mlimg.plan import Platform
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import EngineError

AMD64 = Platform("linux", "amd64")
MANIFEST = Digest.of(b"manifest")


@dataclass
class Has:
    """What the engine has, and what its registry would give."""

    images: dict[str, EngineImage] = field(default_factory=dict)
    registry: dict[str, EngineImage] = field(default_factory=dict)
    store: str = "graph"
    tags: dict[str, str] = field(default_factory=dict)

    def image(self, reference: str) -> EngineImage | None:
        return self.images.get(reference)

    def pull(self, reference: str, _platform: Platform) -> EngineImage:
        return self.registry[reference]

    def tag(self, image_id: str, reference: str) -> None:
        self.tags[reference] = image_id


def made(*repo_digests: str, architecture: str = "amd64", variant: str = "") -> EngineImage:
    image = Image.of(
        os="linux",
        architecture=architecture,
        variant=variant,
        settings={},
        layers=[Layer(Digest.of(b"base"))],
    )
    return EngineImage("sha256:" + "12" * 32, image, (), repo_digests, 1)


def resolve(has: Has, written: str, platform: Platform = AMD64) -> Any:
    return resolve_base(cast("Engine", has), written, platform)


def test_a_base_that_came_from_its_registry_is_pinned() -> None:
    base = resolve(Has({"python:3.13": made(f"other@{Digest.of(b'x')}", f"python@{MANIFEST}")}), "python:3.13")
    assert base.pinned == f"python@{MANIFEST}"
    assert base.build_context is None
    assert base.diff_ids == (Digest.of(b"base"),)


def test_a_base_that_only_the_engine_has_is_named_by_its_id() -> None:
    has = Has({"mlimg.local/python:3.13": made()})
    base = resolve(has, "mlimg.local/python:3.13")
    assert base.pinned == "mlimg.local/python:3.13"
    assert has.tags == {"mlimg.local/base:121212121212": "sha256:" + "12" * 32}
    assert str(base.build_context) == "mlimg.local/base:121212121212"


def test_the_containerd_store_names_every_base_by_its_id() -> None:
    base = resolve(Has({"python:3.13": made(f"python@{MANIFEST}")}, store="containerd"), "python:3.13")
    assert base.pinned == f"python@{MANIFEST}"
    assert str(base.build_context) == "mlimg.local/base:121212121212"


def test_a_base_that_the_engine_lacks_is_pulled() -> None:
    assert resolve(Has(registry={"python:3.13": made(f"python@{MANIFEST}")}), "python:3.13").pinned.endswith(
        str(MANIFEST)
    )


def test_a_base_for_another_platform_is_pulled_where_it_came_from_a_registry() -> None:
    written = "python:3.13"
    other = made(f"python@{Digest.of(b'other')}", architecture="arm64")
    assert resolve(Has({written: other}, {written: made(f"python@{MANIFEST}")}), written).pinned.endswith(str(MANIFEST))


@pytest.mark.parametrize("registry", [{}, {"a.b/c:1": made(f"a.b/c@{MANIFEST}", architecture="arm64")}])
def test_a_base_that_is_not_for_the_platform_is_refused(registry: dict[str, EngineImage]) -> None:
    """D8: wrong architecture."""
    has = Has({} if registry else {"a.b/c:1": made(architecture="arm64")}, registry)
    with pytest.raises(EngineError, match="linux/arm64") as failed:
        resolve(has, "a.b/c:1")
    assert "build.platform" in failed.value.hint


def test_arm64_has_one_variant() -> None:
    has = Has({"a.b/c:1": made(architecture="arm64", variant="v8")})
    assert resolve(has, "a.b/c:1", Platform("linux", "arm64"))


def test_a_machine_takes_a_base_for_an_earlier_variant_but_not_for_a_later() -> None:
    assert resolve(Has({"a.b/c:1": made()}), "a.b/c:1", Platform("linux", "amd64", "v3"))
    has = Has({"a.b/c:1": made(architecture="arm", variant="v6")})
    assert resolve(has, "a.b/c:1", Platform("linux", "arm", "v7"))
    assert resolve(has, "a.b/c:1", Platform("linux", "arm"))
    with pytest.raises(EngineError, match="linux/arm/v6"):
        resolve(has, "a.b/c:1", Platform("linux", "arm", "v5"))
