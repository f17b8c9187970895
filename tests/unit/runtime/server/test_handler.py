import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlimg.runtime.errors import LimitError, ModelError, TemplateError
from mlimg.runtime.server.handler import Handler, import_handler

WORKING = "def load(model_dir, options): return options\ndef predict(model, inputs): return inputs\n"


@pytest.fixture(autouse=True)
def _clean_imports() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def server_dir(folder: Path, *, template: str | None = None, own: str | None = None) -> Path:
    for text, path in ((template, folder / "handler.py"), (own, folder / "code" / "handler.py")):
        if text is not None:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    return folder


def test_the_templates_handler_is_imported(tmp_path: Path) -> None:
    handler = import_handler(server_dir(tmp_path, template=WORKING))
    assert handler.load(tmp_path, {"a": 1}) == {"a": 1}
    assert handler.signature(None) is None


def test_the_users_handler_wins(tmp_path: Path) -> None:
    handler = import_handler(server_dir(tmp_path, template="1/0", own=WORKING))
    assert handler.path == tmp_path / "code" / "handler.py"


def test_the_users_handler_imports_what_lies_beside_it(tmp_path: Path) -> None:
    server_dir(tmp_path, own=f"import beside_it\n{WORKING}")
    (tmp_path / "code" / "beside_it.py").write_text("")
    import_handler(tmp_path)


def test_a_server_without_handler_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="no handler") as caught:
        import_handler(tmp_path)
    assert "server.code" in caught.value.hint
    assert caught.value.status == 11


@pytest.mark.parametrize("name", ["load", "predict"])
def test_a_handler_lacks_a_function(tmp_path: Path, name: str) -> None:
    with pytest.raises(TemplateError, match=f"no function `{name}`"):
        import_handler(server_dir(tmp_path, own=WORKING.replace(f"def {name}", "def other")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import not_there_at_all", "No module named 'not_there_at_all'"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("def f(:", "SyntaxError"),
        ("1/0", "ZeroDivisionError"),
    ],
)
def test_a_handler_that_cannot_be_imported_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TemplateError, match=re.escape(message)) as caught:
        import_handler(server_dir(tmp_path, own=text))
    assert "\n" not in caught.value.message


def handler_of(text: str) -> Handler:
    namespace: dict[str, object] = {}
    exec(text, namespace)
    return Handler(Path("handler.py"), namespace["load"], None, namespace.get("signature"), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("raise ValueError('not a model\\nsecond line')", ModelError),
        ("raise SystemExit(0)", ModelError),
        ("raise KeyboardInterrupt", ModelError),
        ("import not_there_at_all", ModelError),
        ("raise MemoryError", LimitError),
    ],
)
def test_g13_whatever_load_raises_is_one_of_ours(tmp_path: Path, statement: str, error: type) -> None:
    handler = handler_of(f"def load(model_dir, options):\n    {statement}")
    with pytest.raises(error) as caught:
        handler.load(tmp_path, {})
    assert "\n" not in str(caught.value)
    assert caught.value.status != 0


def test_a_handler_tells_its_signature() -> None:
    described = "([{'name': 'x', 'datatype': 'FP32', 'shape': [-1]}], [])"
    signature = handler_of(f"load = None\ndef signature(model): return {described}").signature(None)
    assert signature is not None
    assert [spec.to_json() for spec in signature[0]] == [{"name": "x", "datatype": "FP32", "shape": [-1]}]


@pytest.mark.parametrize("described", ["3", "([{}], [])", "([], [], [])", "1/0"])
def test_a_signature_that_is_none_ends_the_start(described: str) -> None:
    with pytest.raises(ModelError, match="signature"):
        handler_of(f"load = None\ndef signature(model): return {described}").signature(None)
