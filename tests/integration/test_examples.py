"""Every example, as its reader would try it; a new folder under `examples/` is tried, too.

`make test` tries one of each template and one way to spoil its model, `make examples` all.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.engines import tool
from tests.support.examples import EXAMPLES, Example, copy, needs_torch, python_of, spec_of

NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/mlimg.yaml"))
# What is bad, a handler of one's own alone knows; test_several_models.py has bad models among good ones.
JUDGED = [name for name in NAMES if "model" in spec_of(name) and spec_of(name)["server"]["template"] != "python"]
# For `make examples` alone: others show more of their templates, or as much (`make demo` has digits, test_cli.py a
# regression by scikit-learn, test_several_models.py several models); llama.cpp takes minutes to compile.
LATER = {
    "custom-handler",
    "digits",
    "gguf-tiny",
    "lightgbm-classification",
    "mlflow-own-model",
    "onnx-digits",
    "pytorch-digits",
    "pytorch-export",
    "several-models",
    "sklearn-breast-cancer",
    "sklearn-diabetes",
    "tensorflow-keras",
    "transformers-embeddings",
    "transformers-generation",
    "xgboost-classification",
}


def each(names: Sequence[str]) -> pytest.MarkDecorator:
    """Tries each of these examples; all tests of one have the same trained copy."""
    tried = [pytest.param(name, marks=pytest.mark.extensive) if name in LATER else name for name in names]
    return pytest.mark.parametrize("example", tried, indirect=True, scope="module")


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


@pytest.mark.parametrize("how", ["cut", *(pytest.param(how, marks=pytest.mark.extensive) for how in ("empty", "text"))])
@each(JUDGED)
def test_a_bad_model_is_one_line_and_status_12_at_build_and_in_the_server(
    example: Example, how: str, tmp_path: Path
) -> None:
    bad = example.spoil(tmp_path / "model", how)
    for status, said in (example.refused_by_check(bad), example.refused_by_server(bad)):
        assert status == 12, said
        assert len(said.splitlines()) <= 2, said  # the error, and what to do next
