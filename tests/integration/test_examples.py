"""Every example, as its reader would try it; a new folder under `examples/` is tried, too."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.engines import tool
from tests.support.examples import EXAMPLES, Example, copy, needs_torch, python_of, spec_of

NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/mlimg.yaml"))
# What is bad, a handler of one's own alone knows; test_several_models.py has bad models among good ones.
JUDGED = [name for name in NAMES if "model" in spec_of(name) and spec_of(name)["server"]["template"] != "python"]


def each(names: Sequence[str]) -> pytest.MarkDecorator:
    """Tries each of these examples; all tests of one have the same trained copy."""
    return pytest.mark.parametrize("example", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def example(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, engine_host: str
) -> Iterator[Example]:
    """A trained copy."""
    torch = request.getfixturevalue("torch_builds") if needs_torch(request.param) else None
    slim = ("base-image.sh", "--python", python_of(request.param))
    base = request.getfixturevalue("torch_base") if torch else tool(*slim, host=engine_host)
    tried = copy(request.param, tmp_path_factory.mktemp("example"), base, torch)
    tried.train()
    yield tried
    tried.remove()


@each(NAMES)
def test_both_patterns_answer_what_the_framework_answers(example: Example) -> None:
    example.mlimg("check")
    for pattern in ("in-image", "load"):
        example.build(pattern)
        with example.served() as url:
            example.check(url)


@pytest.mark.parametrize("how", ["empty", "cut", "text"])
@each(JUDGED)
def test_a_bad_model_is_one_line_and_status_12_at_build_and_in_the_server(
    example: Example, how: str, tmp_path: Path
) -> None:
    bad = example.spoil(tmp_path / "model", how)
    for status, said in (example.refused_by_check(bad), example.refused_by_server(bad)):
        assert status == 12, said
        assert len(said.splitlines()) <= 2, said  # the error, and what to do next
