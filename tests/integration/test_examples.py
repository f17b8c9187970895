"""Every example, as its reader would try it; a new folder under `examples/` is tried, too."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import tool
from tests.support.examples import EXAMPLES, Example, copy, needs_torch, python_of

NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/mlimg.yaml"))


@pytest.fixture(scope="module", params=NAMES)
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


def test_both_patterns_answer_what_the_framework_answers(example: Example) -> None:
    example.mlimg("check")
    for pattern in ("in-image", "load"):
        example.build(pattern)
        with example.served() as url:
            example.check(url)


@pytest.mark.parametrize("how", ["empty", "cut", "text"])
def test_a_bad_model_is_one_line_and_status_12_at_build_and_in_the_server(
    example: Example, how: str, tmp_path: Path
) -> None:
    if example.template == "python":
        pytest.skip("what is good and bad is known to the example's own handler alone")
    if example.models:
        pytest.skip("test_several_models.py has what a bad model among good ones does")
    bad = example.spoil(tmp_path / "model", how)
    refusals = [example.refused_by_check(bad)]
    if example.template != "mlserver":  # which loads the model itself, and tells what it pleases
        refusals.append(example.refused_by_server(bad))
    for status, said in refusals:
        assert status == 12, said
        assert len(said.splitlines()) <= 2, said  # the error, and what to do next
