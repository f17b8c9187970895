"""Which model a container serves. Bars: G8, G11."""

import dataclasses
from pathlib import Path

import pytest

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import ConflictError, ModelError, SpecError
from mlimg.runtime.locate import is_in_image, locate, locate_all
from tests.support.payloads import FILES, payload

MANIFEST = payload().manifest.to_bytes()


class Container:
    """A root folder with models in some of its places, and the mounts that a container would see."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models = root / "models"
        self.mnt = root / "mnt"
        self.mountinfo = root / "mountinfo"
        self.mount()

    def mount(self, *points: Path) -> None:
        mounts = [Path("/"), Path("/proc"), *points]
        lines = [
            f"{n} 1 0:{n} / {str(path).replace(' ', chr(92) + '040')} rw - x x rw" for n, path in enumerate(mounts)
        ]
        self.mountinfo.write_text("\n".join(lines))

    def put(self, folder: Path, *, manifest: bytes | None = MANIFEST) -> Path:
        for name, data in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        if manifest is not None:
            (folder / "mlimg.manifest").write_bytes(manifest)
        return folder

    def locate(self, **environ: str) -> tuple[str, str]:
        variables = {"MLIMG_MODEL_DIR": str(self.models), **environ}
        found = locate(variables, mountinfo=self.mountinfo, places=(self.mnt,))
        return found.kind, found.source

    def locate_all(self, **environ: str) -> list[tuple[str, str, str]]:
        variables = {"MLIMG_MODEL_DIR": str(self.models), **environ}
        found = locate_all(variables, mountinfo=self.mountinfo, places=(self.mnt,))
        return [(located.name, located.kind, located.source) for located in found]

    def put_two(self, folder: Path) -> None:
        self.put(folder / "digits")
        self.put(folder / "wine", manifest=payload(name="wine", version="7").manifest.to_bytes())


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path.resolve())


def test_the_model_in_the_image_comes_first(container: Container) -> None:
    container.put(container.models)
    container.put(container.mnt)
    assert container.locate(STORAGE_URI="s3://elsewhere") == ("image", str(container.models))


def test_a_model_on_a_mounted_folder_is_not_in_the_image(container: Container) -> None:
    container.put(container.models)
    container.mount(container.models)
    assert container.locate() == ("folder", str(container.models))


def test_the_platform_places_models(container: Container) -> None:
    container.put(container.root / "azure")
    assert container.locate(AZUREML_MODEL_DIR=str(container.root / "azure")) == (
        "folder",
        str(container.root / "azure"),
    )
    container.put(container.mnt)
    assert container.locate(AZUREML_MODEL_DIR=str(container.root / "azure")) == ("folder", str(container.mnt))


def test_a_whole_model_image_may_be_mounted(container: Container) -> None:
    container.put(container.mnt / "models")
    assert container.locate() == ("folder", str(container.mnt / "models"))


def test_an_empty_volume_and_what_was_fetched_there_are_no_model(container: Container) -> None:
    (container.models / "lost+found").mkdir(parents=True)
    (container.models / ".mlimg").mkdir()
    container.mount(container.models)
    assert container.locate(MLIMG_MODEL="oci://host/digits:3") == ("remote", "oci://host/digits:3")


def test_uris_are_taken_in_order(container: Container) -> None:
    assert container.locate(STORAGE_URI="oci://c/m:1", AIP_STORAGE_URI="oci://b/m:1") == ("remote", "oci://b/m:1")
    assert container.locate(AIP_STORAGE_URI="oci://b/m:1", MLIMG_MODEL="oci://a/m:1") == ("remote", "oci://a/m:1")


@pytest.mark.parametrize("uri", ["s3://bucket/models/digits/3", "gs://bucket/digits/", f"az://box/x@{Digest.of(b'')}"])
def test_object_stores_are_fetched_from(container: Container, uri: str) -> None:
    assert container.locate(STORAGE_URI=uri) == ("remote", uri)
    assert container.locate(AIP_STORAGE_URI=uri) == ("remote", uri)


def test_nothing_is_said_with_the_places_that_were_looked_at(container: Container) -> None:
    with pytest.raises(ModelError) as caught:
        container.locate()
    for place in (str(container.models), str(container.mnt), "MLIMG_MODEL", "AIP_STORAGE_URI", "STORAGE_URI"):
        assert place in caught.value.message


@pytest.mark.parametrize(
    "uri",
    [
        "oci://host/other:3",
        "oci://host/digits:4",
        "s3://bucket/digits/4",
        f"az://box/digits/3@{Digest.of(b'')}",
        "file:///mnt/other/3",
        f"file:///mnt/x@{Digest.of(b'')}",
    ],
)
def test_g8_an_image_does_not_serve_another_model_than_its_own(container: Container, uri: str) -> None:
    container.put(container.models)
    with pytest.raises(ConflictError, match="digits 3"):
        container.locate(MLIMG_MODEL=uri)


@pytest.mark.parametrize(
    "uri",
    [
        "oci://host/models/digits:3",
        f"oci://host/models/digits:3@{Digest.of(b'')}",
        "s3://bucket/models/digits/3",
        f"gs://bucket/anything@{Digest.of(MANIFEST)}",
        f"file:///mnt/x@{Digest.of(MANIFEST)}",
    ],
)
def test_g8_an_image_may_be_told_its_own_model(container: Container, uri: str) -> None:
    container.put(container.models)
    assert container.locate(MLIMG_MODEL=uri)[0] == "image"


def test_a_placed_model_that_cannot_be_told_from_the_wanted_one_is_refused(container: Container) -> None:
    container.put(container.mnt, manifest=None)
    assert container.locate()[0] == "folder"
    with pytest.raises(ConflictError, match="without a manifest"):
        container.locate(MLIMG_MODEL="oci://host/digits:3")


def test_a_file_uri_names_one_of_the_models_on_a_volume(container: Container) -> None:
    folder = container.put(container.mnt / "digits" / "3")
    uri = f"file://{folder}"
    assert container.locate(MLIMG_MODEL=uri, MLIMG_STORE_DIR=str(container.mnt)) == ("folder", uri)


@pytest.mark.parametrize(
    "uri",
    ["file:///etc", "file:///etc/passwd", "http://169.254.169.254/latest/meta-data", "http://example.com/model",
     "https://example.com/model", "s3://BUCKET/model", "gs://bucket/../model", "az://container/model?sig=x", "ftp://host/m",
     "oci://169.254.169.254/model:1", "oci://metadata.google.internal/model:1", "oci://host/no-version", "model",
     "file://relative", "file:///mnt/../etc", "oci://host/UPPER:1", "\x1b[2Joci://x/y:1"],
)  # fmt: skip
def test_g11_a_uri_that_is_not_fetched_from_is_refused_unasked(
    container: Container, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a request left"))
    with pytest.raises(SpecError) as caught:
        container.locate(MLIMG_MODEL=uri)
    assert "\x1b" not in caught.value.message


def test_g11_a_link_does_not_lead_out_of_the_allowed_folders(container: Container) -> None:
    outside = container.put(container.root / "outside")
    store = container.root / "store"
    store.mkdir()
    (store / "model").symlink_to(outside)
    with pytest.raises(SpecError):
        container.locate(MLIMG_MODEL=f"file://{store}/model", MLIMG_STORE_DIR=str(store))
    inside = container.put(store / "inside")
    assert container.locate(MLIMG_MODEL=f"file://{inside}", MLIMG_STORE_DIR=str(store))[0] == "folder"


def test_the_mount_that_holds_a_folder_is_the_longest(container: Container, tmp_path: Path) -> None:
    spaced = container.root / "with space" / "models"
    spaced.mkdir(parents=True)
    container.mount(spaced.parent)
    assert not is_in_image(spaced, container.mountinfo)
    assert is_in_image(container.root, container.mountinfo)
    assert not is_in_image(spaced, tmp_path / "no mountinfo")


@pytest.mark.parametrize("between", [",", " ", ", ", "\n", " ,\n  "])
def test_one_variable_names_several_models(container: Container, between: str) -> None:
    uris = ["oci://host/models/digits:3", f"s3://bucket/a, b/wine/7@{Digest.of(b'')}", "gs://bucket/iris"]
    found = container.locate_all(MLIMG_MODEL=between.join(uris) + "\n")
    assert found == [(name, "remote", uri) for name, uri in zip(("digits", "wine", "iris"), uris, strict=True)]


def test_a_folder_may_have_a_comma_and_a_blank(container: Container) -> None:
    folder = container.put(container.mnt / "mine, and yours")
    assert container.locate_all(MLIMG_MODEL=f"file://{folder}", MLIMG_STORE_DIR=str(container.mnt)) == [
        ("", "folder", f"file://{folder}")
    ]


def test_models_in_folders_are_named_by_what_is_there_else_by_their_place(container: Container) -> None:
    store = container.root / "store"
    container.put(store / "first" / "3")
    container.put(store / "wine" / "7", manifest=b"{")
    places = ("first/3", "wine/7", "lost")
    uris = " ".join(f"file://{store}/{place}" for place in places)
    found = container.locate_all(MLIMG_MODEL=uris, MLIMG_STORE_DIR=str(store))
    assert [name for name, _, _ in found] == ["digits", "wine", "lost"]


@pytest.mark.parametrize("uris", ["oci://a/digits:3 oci://b/c/digits:4", "oci://a/digits:3, s3://bucket/digits/3"])
def test_two_models_of_one_name_are_refused(container: Container, uris: str) -> None:
    with pytest.raises(SpecError, match="two models `digits`"):
        container.locate_all(MLIMG_MODEL=uris)


@pytest.mark.parametrize("wrong", ["b:2", "ftp://b/c", "http://b/c", "oci://b/c"])
def test_one_wrong_uri_of_several_is_a_wrong_setting(container: Container, wrong: str) -> None:
    with pytest.raises(SpecError, match="MLIMG_MODEL"):
        container.locate_all(MLIMG_MODEL=f"oci://a/digits:3, {wrong}")


def test_a_folder_of_models_is_several(container: Container) -> None:
    container.put_two(container.models)
    container.put(container.models / ".hidden")
    (container.models / "no model").mkdir()
    expected = [(name, "image", str(container.models / name)) for name in ("digits", "wine")]
    assert container.locate_all() == expected
    container.mount(container.models / "wine")
    assert container.locate_all() == [expected[0], ("wine", "folder", expected[1][2])]


@pytest.mark.parametrize("below", [".", "models"])
def test_an_image_of_several_models_says_so_in_its_manifest(container: Container, below: str) -> None:
    folder = container.mnt / below
    container.put_two(folder)
    together = dataclasses.replace(payload(name="both").manifest, format="models")
    (folder / "mlimg.manifest").write_bytes(together.to_bytes())
    assert container.locate_all() == [
        ("digits", "folder", str(folder / "digits")),
        ("wine", "folder", str(folder / "wine")),
    ]


def test_several_model_images_may_be_mounted_side_by_side(container: Container) -> None:
    container.put(container.mnt / "digits")
    container.put(container.mnt / "wine" / "models")
    assert container.locate_all() == [
        ("digits", "folder", str(container.mnt / "digits")),
        ("wine", "folder", str(container.mnt / "wine" / "models")),
    ]


def test_of_several_models_those_are_served_that_are_named(container: Container) -> None:
    container.put_two(container.models)
    wine = ("wine", "image", str(container.models / "wine"))
    assert container.locate_all(MLIMG_MODEL="oci://host/wine:7") == [wine]
    assert container.locate(MLIMG_MODEL="oci://host/wine:7") == wine[1:]
    both = container.locate_all(MLIMG_MODEL="oci://host/wine:7 oci://host/digits:3")
    assert [name for name, _, _ in both] == ["wine", "digits"]
    with pytest.raises(ConflictError, match=r"oci://host/wine:8, but the models in this image are digits 3, wine 7"):
        container.locate_all(MLIMG_MODEL="oci://host/digits:3 oci://host/wine:8")


def test_what_takes_one_model_refuses_several(container: Container) -> None:
    container.put_two(container.models)
    with pytest.raises(SpecError, match="takes one: digits, wine"):
        container.locate()
