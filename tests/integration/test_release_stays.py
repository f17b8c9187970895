"""What does not leave the machine unless it is asked to, and what is refused before anything could."""

from collections.abc import Callable

import pytest

from mlimg.means import Means
from mlimg.plan import Platform
from mlimg.release import build
from mlimg.runtime.errors import SpecError
from mlimg.runtime.oci import Access
from mlimg.spec.load import Overrides, load_spec
from mlimg.spec.schema import Pattern
from tests.support.projects import Project, RegistryLog, tags_of
from tests.support.reports import Titles

AccessLog = Callable[[Project], RegistryLog]
one_store = pytest.mark.parametrize("engine", ["graph"], indirect=True)


@one_store
def test_nothing_leaves_with_no_push(published: Project, access_log: AccessLog) -> None:
    log = access_log(published)
    image, server = f"{published.prefix}/scores:1", f"{published.prefix}/server:1.0"
    load = published.build("load", "--no-push")
    assert load.release["unpublished"] == [server, load.release["model"]["reference"]]
    assert load.last_line.startswith("not published: ")
    assert server in load.last_line
    assert load.release["model"]["reference"].partition("@")[0] in load.last_line
    in_image = published.build("in-image", "--no-push")
    assert image in in_image.last_line
    assert published.build("in-image").last_line == in_image.last_line
    assert log.news().writes == []
    for pattern in ("load", "in-image"):
        assert published.mlimg("plan", "--push", "--pattern", pattern).status == 0
    assert log.news().writes == []
    # The log would have told: without the flag a named store gets its model.
    named = published.build("load")
    assert server in named.last_line
    assert "models" not in named.last_line
    assert log.news().uploaded()
    assert sorted(tags_of(f"{published.prefix}/models/scores")) == ["1", "1-modelpack"]
    assert tags_of(f"{published.prefix}/server") == []


@one_store
def test_a_spec_that_names_no_store_never_leaves(published: Project, access_log: AccessLog) -> None:
    del published.spec["model"]["store"]
    log = access_log(published)
    for pattern in ("in-image", "load"):
        built = published.build(pattern)
        assert built.last_line.startswith("not published: ")
    assert log.news().writes == []


@one_store
@pytest.mark.parametrize("store", [None, "./models"])
def test_a_model_cannot_be_pushed_to_no_registry(published: Project, access_log: AccessLog, store: str | None) -> None:
    if store is None:
        del published.spec["model"]["store"]
    else:
        published.set(model__store=store)
    log = access_log(published)
    refused = published.build("load", "--push")
    assert refused.status == 10
    assert "model.store" in refused.stderr
    assert log.news().asked == []
    assert published.images() == []


class Arm:
    """An engine of another platform; all that may be asked of it."""

    platform = Platform("linux", "arm64", "v8")


@one_store
def test_an_engine_of_another_platform_does_not_decide_what_is_published(
    published: Project, access_log: AccessLog
) -> None:
    log = access_log(published)
    del published.spec["build"]
    published.command()
    loaded = load_spec(published.folder, Overrides())
    means = Means(access=Access(), report=Titles(), connect=Arm)  # type: ignore[arg-type]
    for pattern in Pattern:
        with pytest.raises(SpecError, match=r"build\.platform is not written.*linux/arm64") as refused:
            build(loaded, means, pattern=pattern, push=True)
        assert refused.value.status == 10
    assert log.news().writes == []
