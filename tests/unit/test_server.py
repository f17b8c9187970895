from collections.abc import Mapping

import pytest

from mlimg.runtime.descriptor import OCI_MANIFEST, Descriptor
from mlimg.runtime.digest import Digest
from mlimg.runtime.oci import RemoteImage
from mlimg.server import PUBLISHED_ANNOTATION, age


def published(annotations: Mapping[str, str]) -> RemoteImage:
    return RemoteImage(Descriptor(OCI_MANIFEST, Digest.of(b""), 0), b"{}", {}, (), (), annotations)


@pytest.mark.parametrize(
    ("day", "told"),
    [("2026-11-23", "today"), ("2026-11-22", "1 day ago"), ("2026-10-01", "53 days ago"), ("2027-01-01", "today")],
)
def test_a_published_server_tells_its_age(day: str, told: str) -> None:
    assert age(published({PUBLISHED_ANNOTATION: day}), "2026-11-23") == told


@pytest.mark.parametrize("annotations", [{}, {PUBLISHED_ANNOTATION: "yesterday"}])
def test_a_server_that_does_not_say_when_was_published_before(annotations: Mapping[str, str]) -> None:
    assert age(published(annotations), "2026-11-23") == "before"
