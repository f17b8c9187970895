import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from mlimg.material import Checked, Unlisted, check, list_model
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import ContextError, LimitError, MlimgError, ModelError, RemoteError, SpecError
from mlimg.runtime.oci import Access
from mlimg.spec.load import load_spec
from tests.support.faults import FaultServer
from tests.support.reports import Titles
from tests.support.webfiles import WebFiles

SPEC = """\
image: registry.example.com/serving/echo
server:
  template: python
  code: ./serve
  requirements: {requirements}
model:
  version: "1"
  source: ./model
"""
HANDLER = "def load(model_dir, options): ...\ndef predict(model, inputs): ...\n"


def project(folder: Path, *, requirements: str = "[]") -> Path:
    (folder / "serve" / "features").mkdir(parents=True)
    (folder / "serve" / "handler.py").write_text(HANDLER)
    (folder / "serve" / "features" / "text.py").write_text("WORDS = ()\n")
    (folder / "model").mkdir()
    (folder / "model" / "weights.bin").write_bytes(b"weights")
    (folder / "mlimg.yaml").write_text(SPEC.format(requirements=requirements))
    return folder


def paths(checked: Checked | Unlisted) -> list[str]:
    return [str(file.path) for file in checked.material.code]


def refused(folder: Path) -> MlimgError:
    with pytest.raises(MlimgError) as caught:
        check(load_spec(folder))
    return caught.value


def test_the_users_code_is_read_whole_and_sorted(tmp_path: Path) -> None:
    assert paths(check(load_spec(project(tmp_path)))) == ["features/text.py", "handler.py"]


def test_secrets_histories_and_caches_beside_the_code_stay_out(tmp_path: Path) -> None:
    """C1."""
    folder = project(tmp_path) / "serve"
    for name in (".env", ".netrc", ".git/config", ".aws/credentials", "__pycache__/handler.pyc", "features/x.pyc"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("canary")
    (folder / "environment.py").write_text("kept: no dot before its name\n")
    assert paths(check(load_spec(tmp_path))) == ["environment.py", "features/text.py", "handler.py"]


def test_only_whether_a_file_can_be_executed_survives_of_its_mode(tmp_path: Path) -> None:
    folder = project(tmp_path)
    (folder / "serve" / "handler.py").chmod(0o600)
    (folder / "serve" / "features" / "text.py").chmod(0o4711)
    assert [file.mode for file in check(load_spec(folder)).material.code] == [0o755, 0o644]


def test_a_link_in_the_code_is_refused(tmp_path: Path) -> None:
    folder = project(tmp_path)
    (folder / "serve" / "passwd.py").symlink_to("/etc/passwd")
    error = refused(folder)
    assert isinstance(error, ContextError)
    assert "passwd.py" in error.message


def test_a_linked_folder_in_the_code_is_refused_rather_than_left_out(tmp_path: Path) -> None:
    folder = project(tmp_path)
    (folder / "shared").mkdir()
    (folder / "shared" / "words.py").write_text("")
    (folder / "serve" / "shared").symlink_to(folder / "shared")
    assert "shared" in refused(folder).message


def test_code_that_is_not_there_is_told_by_its_key(tmp_path: Path) -> None:
    folder = project(tmp_path)
    (folder / "serve").rename(folder / "server")
    assert refused(folder).message == f"server.code: there is no {folder / 'serve'}"


def test_a_file_of_the_code_has_a_name_that_is_text(tmp_path: Path) -> None:
    folder = project(tmp_path)
    Path(os.fsdecode(bytes(folder / "serve") + b"/caf\xe9.py")).write_text("")
    error = refused(folder)
    assert isinstance(error, ContextError)
    assert error.message.isprintable()


@pytest.mark.parametrize("source", [".", ".."])
def test_a_model_is_not_the_folder_of_its_spec(tmp_path: Path, source: str) -> None:
    """What a build leaves there would be in the next build's model."""
    (tmp_path / ".git").mkdir()
    folder = tmp_path / "iris"
    folder.mkdir()
    spec = project(folder) / "mlimg.yaml"
    spec.write_text(spec.read_text().replace("./model", source))
    assert refused(folder).message.startswith("model.source: the folder holds the spec")


def test_a_model_is_not_the_folder_of_its_store(tmp_path: Path) -> None:
    spec = project(tmp_path) / "mlimg.yaml"
    text = spec.read_text()
    spec.write_text(text + "  store: ./model/store\n")
    assert refused(tmp_path).message.startswith("model.source: the folder holds model.store")
    spec.write_text(text + "  store: ./models\n")
    assert check(load_spec(tmp_path)).material.store == str(tmp_path / "models")


def test_a_file_of_requirements_may_begin_with_a_mark_and_is_utf8(tmp_path: Path) -> None:
    folder = project(tmp_path, requirements="./needed.txt")
    (folder / "needed.txt").write_bytes("\ufeffsix==1.17.0\r\n".encode())
    assert check(load_spec(folder)).material.requirements == ("six==1.17.0",)
    (folder / "needed.txt").write_bytes("six==1.17.0\r\n".encode("utf-16"))
    assert refused(folder).message == "server.requirements: ./needed.txt is not UTF-8"


def test_links_of_a_model_are_followed_within_the_project(tmp_path: Path) -> None:
    folder = project(tmp_path)
    (folder / "blobs").mkdir()
    (folder / "blobs" / "1").write_bytes(b"more")
    (folder / "model" / "more.bin").symlink_to("../blobs/1")
    assert isinstance(refused(folder), ModelError)
    text = (folder / "mlimg.yaml").read_text()
    (folder / "mlimg.yaml").write_text(text + "  follow_links: true\n")
    assert [str(file.path) for file in check(load_spec(folder)).inventory] == ["more.bin", "weights.bin"]


def test_a_pipe_in_the_code_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    folder = project(tmp_path)
    os.mkfifo(folder / "serve" / "pipe.py")
    assert isinstance(refused(folder), ContextError)


def test_code_that_is_really_data_is_over_the_limit(tmp_path: Path) -> None:
    folder = project(tmp_path)
    with (folder / "serve" / "weights.bin").open("wb") as file:
        file.truncate(64 * 1024**2 + 1)
    assert isinstance(refused(folder), LimitError)


def test_requirements_come_from_a_file_without_its_comments(tmp_path: Path) -> None:
    folder = project(tmp_path, requirements="./requirements.txt")
    (folder / "requirements.txt").write_text("# ours\nscikit-learn==1.7.2  # pinned\n\nskops\n")
    assert check(load_spec(folder)).material.requirements == ("scikit-learn==1.7.2", "skops")


def test_requirements_that_lead_to_another_file_are_refused(tmp_path: Path) -> None:
    folder = project(tmp_path, requirements="./requirements.txt")
    (folder / "requirements.txt").write_text("skops\n-r /etc/passwd\n")
    error = refused(folder)
    assert isinstance(error, SpecError)
    assert "requirements.txt:2" in error.message


def test_a_model_that_is_not_there_is_said_before_anything_is_built(tmp_path: Path) -> None:
    """B1."""
    folder = project(tmp_path)
    (folder / "model" / "weights.bin").unlink()
    assert isinstance(refused(folder), ModelError)
    (folder / "model").rmdir()
    assert refused(folder).status == 12


def test_an_error_about_what_the_spec_names_says_where_that_is_written(tmp_path: Path) -> None:
    folder = project(tmp_path)
    spec = (folder / "mlimg.yaml").read_text()
    (folder / "mlimg.yaml").write_text(spec.replace("./model", "./modle"))
    assert ":8:11: model.source: " in refused(folder).message
    (folder / "mlimg.yaml").write_text(spec.replace("template: python", "template: pyhton"))
    assert ":3:13: server.template: unknown template `pyhton`" in refused(folder).message


REMOTE = """\
image: registry.example.com/serving/echo
server: {template: python, code: ./serve}
model: {version: "1", source: "%s", sha256: %s}
"""


def test_of_several_models_the_wrong_one_is_told_with_its_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.json").write_text('{"learner":{},"version":[3,1,0]}')
    text = "image: all\nversion: 1\nserver: {template: TEMPLATE}\nmodels:\n"
    text += "".join(f"  - {{name: {name}, version: 1, source: ./{name}}}\n" for name in ("a", "b"))
    spec = tmp_path / "mlimg.yaml"
    spec.write_text(text.replace("TEMPLATE", "xgboost"))
    assert isinstance(check(load_spec(tmp_path)), Unlisted)
    (tmp_path / "b" / "model.json").write_text('{"learner":{}')
    with pytest.raises(ModelError) as caught:
        check(load_spec(tmp_path))
    assert "mlimg.yaml:6:35: models[1].source: `model.json` is a damaged" in caught.value.message
    spec.write_text(text.replace("TEMPLATE", "gguf"))
    with pytest.raises(SpecError, match=r"mlimg.yaml:5:3: models: the server of template `gguf` takes one model"):
        check(load_spec(tmp_path))


def test_a_remote_model_is_not_looked_for_by_a_check_and_listed_when_asked(tmp_path: Path) -> None:
    project(tmp_path)
    data = b"weights of a remote model"
    with FaultServer(WebFiles({"model.bin": data})) as server:
        address = f"http://{server.host}/model.bin"
        (tmp_path / "mlimg.yaml").write_text(REMOTE % (address, Digest.of(data).hex))
        checked = check(load_spec(tmp_path))
        assert isinstance(checked, Unlisted)
        assert (checked.material.source, checked.material.framework) == (address, "")
        assert server.count() == 0
        report = Titles()
        listed = list_model(checked, Access(), report)
        assert report.done == [f"look at {address}"]
        assert [(str(file.path), file.size_bytes) for file in listed.inventory] == [("model.bin", len(data))]
        assert listed.material.framework == "custom"
        assert list_model(listed, Access(), Titles()) is listed


def test_a_remote_pickle_is_seen_for_what_it_is(tmp_path: Path) -> None:
    project(tmp_path)
    data = pickle.dumps(Path("x"))
    with FaultServer(WebFiles({"model.pkl": data})) as server:
        (tmp_path / "mlimg.yaml").write_text(REMOTE % (f"http://{server.host}/model.pkl", Digest.of(data).hex))
        with pytest.raises(ModelError, match="loading it runs the code in it"):
            list_model(check(load_spec(tmp_path)), Access(), Titles())


def test_a_remote_model_that_is_not_there_is_told_by_its_key(tmp_path: Path) -> None:
    project(tmp_path)
    with FaultServer(WebFiles({})) as server:
        (tmp_path / "mlimg.yaml").write_text(REMOTE % (f"http://{server.host}/model.bin", "a" * 64))
        with pytest.raises(RemoteError, match="answers 404"):
            list_model(check(load_spec(tmp_path)), Access(), Titles())


def test_a_check_of_a_remote_model_imports_no_http(tmp_path: Path) -> None:
    project(tmp_path)
    (tmp_path / "mlimg.yaml").write_text(REMOTE % ("https://host.invalid/model.bin", "a" * 64))
    program = """
import sys
from pathlib import Path

from mlimg.material import check
from mlimg.spec.load import load_spec

check(load_spec(Path(sys.argv[1])))
print(sorted({"urllib3", "obstore", "mlflow"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("pattern", ["*.bin", "*.sjon"])
def test_a_pattern_chooses_files_or_is_told_with_its_place(tmp_path: Path, pattern: str) -> None:
    folder = project(tmp_path)
    (folder / "model" / "notes.txt").write_text("none of the model's")
    written = SPEC.format(requirements="[]") + f'  include: ["{pattern}"]\n'
    (folder / "mlimg.yaml").write_text(written)
    if pattern == "*.bin":
        checked = check(load_spec(folder))
        assert isinstance(checked, Checked)
        assert [str(file.path) for file in checked.inventory] == ["weights.bin"]
    else:
        assert "model.include: `*.sjon` matches no file" in refused(folder).message
