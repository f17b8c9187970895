"""Commands that need no engine, as a stranger uses them; with an engine they are in tests/integration/test_cli.py."""

import json
from pathlib import Path

import joblib
import pytest
from sklearn.linear_model import LinearRegression

from mlimg.append import Image, Layer
from mlimg.cli.main import run
from mlimg.cli.push import output_line
from mlimg.record import Part, Release, write_record
from mlimg.runtime.descriptor import OCI_LAYER, Descriptor
from mlimg.runtime.digest import Digest
from mlimg.runtime.oci import Access
from mlimg.runtime.stores import open_store
from tests.support.faults import FaultServer
from tests.support.layouts import write_layout
from tests.support.payloads import payload
from tests.support.registry import MemoryRegistry

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, on a machine whose engine does not answer."""
    here = tmp_path / "digits"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")  # nobody listens there; docker leaks refused unix sockets
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv("MLIMG_SET", raising=False)
    return here


def test_mlimg_alone_is_help(capfd: Capture) -> None:
    assert run([]) == 0
    shown = capfd.readouterr().out
    assert "Usage: mlimg" in shown
    assert "..." not in shown.replace("[ARGS]...", ""), "a command's line is cut"


def test_init_looks_at_the_model_and_what_it_writes_checks(folder: Path, capfd: Capture) -> None:
    joblib.dump(LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]), folder / "digits.joblib")
    assert run(["init"]) == 0
    told = capfd.readouterr().err
    assert "sklearn model in joblib" in told
    assert "`allow_pickle:`" in told
    spec = folder / "mlimg.yaml"
    assert "template: sklearn" in spec.read_text()
    assert "image: digits" in spec.read_text()
    assert "$schema" in json.loads((folder / ".mlimg" / "schema.json").read_text())
    assert run(["check"]) == 12  # nobody has said yet that the file is to be trusted
    assert "allow_pickle: true" in capfd.readouterr().err
    spec.write_text(spec.read_text().replace("# allow_pickle", "allow_pickle"))
    assert run(["check"]) == 0
    assert "1 file," in capfd.readouterr().err


def test_init_never_writes_over_a_spec(folder: Path, capfd: Capture) -> None:
    (folder / "model.bin").write_bytes(b"\0")
    (folder / "mlimg.yaml").write_text("mine")
    assert run(["init", "model.bin"]) == 2
    assert (folder / "mlimg.yaml").read_text() == "mine"
    assert "is there already" in capfd.readouterr().err


def test_init_where_no_model_is_says_how_to_name_one(capfd: Capture) -> None:
    assert run(["init"]) == 12
    assert "`mlimg init path/to/model`" in capfd.readouterr().err


def test_a_model_of_no_known_format_gets_the_template_for_handlers(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "weights.bin").write_bytes(b"\0\1\2")
    assert run(["init"]) == 0
    assert "template: python\n  code: ./serve" in (folder / "mlimg.yaml").read_text()


def test_templates_are_listed_and_copied(folder: Path, capfd: Capture) -> None:
    assert run(["templates", "--json"]) == 0
    names = [template["name"] for template in json.loads(capfd.readouterr().out)]
    assert names == sorted(names)
    assert "sklearn" in names
    assert run(["templates", "copy", "sklearn", "mine"]) == 0
    assert capfd.readouterr().out == "template=mine\n"
    assert (folder / "mine" / "handler.py").is_file()
    assert run(["templates", "copy", "sklearn", "mine"]) == 20
    assert run(["templates", "copy", "sklaern", "other"]) == 11
    assert not (folder / "other").exists()


def test_doctor_without_an_engine_says_how_to_mend_it_and_is_14(capfd: Capture) -> None:
    assert run(["doctor"]) == 14
    shown = capfd.readouterr().out
    assert "NOT OK  engine" in shown
    assert "-> start Docker" in shown
    assert run(["doctor", "--json"]) == 14
    findings = {finding["name"]: finding for finding in json.loads(capfd.readouterr().out)}
    assert findings["engine"]["well"] is False
    assert findings["spec"]["well"] is True  # there is none, which is no fault


def test_doctor_names_every_registry_and_shows_nothing_of_its_credentials(
    folder: Path, tmp_path: Path, capfd: Capture
) -> None:
    (tmp_path / "docker").mkdir()
    auths = {"auths": {"registry.example.com": {"username": "a", "password": "CaNaRy-5f1d"}}}
    (tmp_path / "docker" / "config.json").write_text(json.dumps(auths))
    (folder / "mlimg.yaml").write_text(
        "image: registry.example.com/digits\nserver: {template: sklearn, image: other.example.com/digits-server}\n"
        'model: {version: "1", source: ./model}\n'
    )
    assert run(["doctor", "--debug"]) == 14
    shown = "".join(capfd.readouterr())
    assert "registry.example.com: found" in shown
    assert "docker login other.example.com" in shown
    assert "CaNaRy" not in shown


def test_inspect_asks_the_registry_for_what_the_engine_does_not_have(capfd: Capture) -> None:
    registry = MemoryRegistry()
    layer = b"a layer" * 10
    descriptor = Descriptor(OCI_LAYER, Digest.of(layer), len(layer))
    image = Image.of(
        os="linux",
        architecture="amd64",
        variant="",
        settings={"Labels": {"io.mlimg.model.name": "digits"}, "User": "10001:0"},
        layers=[Layer(descriptor.digest, descriptor)],
    )
    registry.put("serving/digits", layer, image.config())
    registry.put_manifest("serving/digits", "1", image.manifest())
    with FaultServer(registry) as server:
        assert run(["inspect", f"{server.host}/serving/digits:1", "--json"]) == 0
        captured = capfd.readouterr()
        assert f"looking in {server.host}" in captured.err
        shown = json.loads(captured.out)
        assert shown["labels"] == {"io.mlimg.model.name": "digits"}
        assert shown["identity"] == image.identity.text
        assert (shown["kind"], shown["model"]) == ("image", None)
        assert run(["inspect", f"{server.host}/serving/digits:2"]) == 16
        assert "does not exist" in capfd.readouterr().err


def test_a_layout_is_inspected_and_pushed(folder: Path, capfd: Capture) -> None:
    layout = write_layout(folder / "out", {"weights.bin": b"w" * 5000})
    listed = [entry.name for entry in layout.entries()]
    for named in ("oci:out", "out"):
        assert run(["inspect", named, "--json"]) == 0
        shown = json.loads(capfd.readouterr().out)
        assert [image["name"] for image in shown["images"]] == listed
    assert run(["inspect", f"oci:out:{listed[-1]}"]) == 0
    assert "model files" in capfd.readouterr().out
    assert run(["inspect", "oci:out:nobody"]) == 2
    assert listed[0] in capfd.readouterr().err
    assert run(["inspect", "oci:nowhere"]) == 2
    capfd.readouterr()
    with FaultServer(MemoryRegistry()) as server:
        assert run(["push", "out", "--to", f"{server.host}/mirror"]) == 0
        lines = capfd.readouterr().out.splitlines()
        assert [line.partition("@sha256:")[0] for line in lines] == [
            f"server={server.host}/mirror/team/server:1.0",
            f"image={server.host}/mirror/team/scores:3-1.0",
            f"image={server.host}/mirror/team/scores:3",
        ]
        assert run(["inspect", f"oci://{server.host}/mirror/team/scores:3", "--json"]) == 0
        assert json.loads(capfd.readouterr().out)["server"]["version"] == "1.0"


def test_a_carried_model_is_named_as_a_build_names_it() -> None:
    pinned = f"registry.test/models/digits:3@{Digest.of(b'manifest')}"
    assert output_line("model image", pinned) == f"model=oci://{pinned}"
    assert output_line("server image", pinned) == f"server={pinned}"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["push", ".", "--to", "ghcr.io"], "no OCI layout"),
        (["push", "out", "--to", "team"], "neither a dot nor a port"),
        (["build", "--output", "out"], "expected oci:DIR"),
        (["build", "--output", "oci:out", "--push"], "exclude each other"),
        (["build", "--output", "oci:out", "--only", "server"], "exclude each other"),
    ],
)
def test_a_layout_is_asked_for_in_one_way(arguments: list[str], told: str, capfd: Capture) -> None:
    assert run(arguments) == 2
    assert told in capfd.readouterr().err


def test_inspect_shows_the_model_in_a_folder(folder: Path, capfd: Capture) -> None:
    version = folder / "store" / "digits" / "3"
    stored = open_store(str(folder / "store"), Access()).publish(payload({"weights.bin": b"w" * 5000}))
    shown = []
    for named in ("store/digits/3", f"file://{version}", str(stored.uri)):
        assert run(["inspect", named, "--json"]) == 0
        shown.append(json.loads(capfd.readouterr().out))
    assert shown == [shown[0]] * 3
    assert shown[0]["digests"] == [str(stored.uri)]
    assert (shown[0]["model"]["name"], shown[0]["model"]["files"], shown[0]["size_bytes"]) == ("digits", 1, 5000)
    assert run(["inspect", f"file://{version}"]) == 0
    assert "model version" in capfd.readouterr().out


def test_inspect_of_no_model_and_no_image_says_so(folder: Path, capfd: Capture) -> None:
    for named, status, told in (
        (f"file://{folder}/nothing", 12, "holds no published model"),
        ("https://example.com/digits/3", 2, "models are stored at oci://"),
        ("s3://Bucket/digits/3", 2, "the bucket's name is not one"),
        ("Digits:3", 2, "neither a path that is there, nor an image or a model"),
    ):
        assert run(["inspect", named]) == status
        assert told in capfd.readouterr().err


def test_inspect_of_a_folder_where_nothing_was_built_says_what_to_run(capfd: Capture) -> None:
    assert run(["inspect"]) == 2
    assert "run `mlimg build` first" in capfd.readouterr().err


def test_clean_without_an_engine_warns_and_cleans_what_it_can(capfd: Capture) -> None:
    assert run(["clean", "--dry-run"]) == 0
    assert "warning: images and replaced models stay" in capfd.readouterr().err


@pytest.mark.parametrize(("models", "status", "told"), [(["a"], 17, "127.0.0.1:9"), (["a", "b"], 2, "models: a, b")])
def test_predict_asks_for_the_model_s_name_only_where_there_are_several(
    folder: Path, capfd: Capture, models: list[str], status: int, told: str
) -> None:
    (folder / "rows.csv").write_text("1,2\n")
    part = Part("serving/all:1", "sha256:" + "0" * 64, "serving/all:1", 1, published=False, how="built")
    named = {name: f"{name}:1" for name in models}
    release = Release("in-image", "all", part, part, "1", "1", "sha256:", "sha256:", image=part, models=named)
    write_record(folder, release)
    assert run(["predict", "rows.csv", "--url", "http://127.0.0.1:9"]) == status
    assert told in capfd.readouterr().err
