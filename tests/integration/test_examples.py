"""Every example, as its reader would try it; a new folder under `examples/` is tried, too."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.examples import EXAMPLES, Example, copy

NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/mlimg.yaml"))


@pytest.fixture
def example(request: pytest.FixtureRequest, tmp_path: Path, base_image: str) -> Iterator[Example]:
    """A trained copy."""
    tried = copy(request.param, tmp_path, base_image)
    tried.train()
    yield tried
    tried.remove()


@pytest.mark.parametrize("example", NAMES, indirect=True)
def test_both_patterns_answer_what_the_framework_answers(example: Example) -> None:
    example.mlimg("check")
    for pattern in ("load", "in-image"):
        example.build(pattern)
        with example.served():
            example.check()
