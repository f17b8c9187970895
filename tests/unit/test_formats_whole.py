"""What several files say of one model: folders, shards, external data, and the versions that saved them."""

import contextlib
import io
import re
import time
import tracemalloc
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import joblib
import numpy as np
import pytest
import sklearn
from hypothesis import given
from hypothesis import strategies as st
from sklearn.dummy import DummyClassifier

from mlimg.formats import Detected, check_formats, detect, models
from mlimg.runtime.errors import ModelError
from tests.support import formats
from tests.support.formats import MODELS
from tests.support.models import DictSource


def look(files: Mapping[str, bytes]) -> tuple[Detected, ...]:
    source = DictSource(files)
    return detect(source, source.inventory())


def choose(files: Mapping[str, bytes], *served: str, allow_pickle: bool = False, **more: object) -> Detected:
    return check_formats(look(files), served, allow_pickle=allow_pickle, **more)


def refused(files: Mapping[str, bytes], *served: str, **more: object) -> str:
    with pytest.raises(ModelError) as caught:
        choose(files, *served, **more)
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value.message


@pytest.mark.parametrize("name", MODELS)
def test_each_format_is_one_model_with_its_framework_and_version(name: str) -> None:
    framework, version, files = MODELS[name]
    (found,) = models(look(files))
    assert (found.format, found.framework, found.version) == (name, framework, version)
    assert found.needs_pickle == (name == "torch-export")
    assert choose(files, name, allow_pickle=True) == found
    inside = {f"some/folder/{path}": data for path, data in files.items()}
    assert choose(inside, name, allow_pickle=True).path == PurePosixPath("some/folder") / found.path


@pytest.mark.parametrize("how", ["empty", "cut", "text"])
@pytest.mark.parametrize("name", MODELS)
def test_a_spoiled_largest_file_of_each_format_is_one_error(name: str, how: str) -> None:
    _, _, files = MODELS[name]
    largest = max(files, key=lambda path: len(files[path]))
    data = files[largest]
    bad = {"empty": b"", "cut": data[: len(data) // 2], "text": b"not what its name says\n"}[how]
    message = refused({**files, largest: bad}, name)
    # Formats whose usual names say nothing are refused for want of any model.
    assert "damaged" in message or largest in {"m.txt", "m.json"}


@pytest.mark.parametrize("format_name", ["transformers", "mlflow", "savedmodel"])
def test_every_file_of_a_folder_counts(format_name: str) -> None:
    _, _, files = MODELS[format_name]
    for path in files:
        if path != "requirements.txt":
            assert f"{PurePosixPath(path).name}`" in refused({**files, path: b""}, format_name)


def test_a_config_is_a_transformers_model_only_beside_safetensors_and_with_its_keys() -> None:
    files = formats.transformers()
    elsewhere = {"config.json": files["config.json"], "sub/model.safetensors": formats.safetensors()}
    assert [found.format for found in look(elsewhere)] == ["safetensors"]
    assert look({"config.json": files["config.json"]}) == ()
    plain = {"config.json": b'{"hidden": 3}', "model.safetensors": formats.safetensors()}
    assert [found.format for found in look(plain)] == ["safetensors"]
    assert choose({**plain, "vocab.json": b'["a", "b"]\n'}, "safetensors").format == "safetensors"
    # Who serves plain safetensors takes those of a transformers folder, too.
    assert choose(files, "safetensors").path.name == "model.safetensors"


def test_a_config_longer_than_what_is_looked_at_is_known() -> None:
    files = formats.transformers()
    labels = b'{"id2label": {' + b", ".join(b'"%d": "label"' % number for number in range(10_000)) + b"}, "
    assert choose({**files, "config.json": labels + files["config.json"][1:]}, "transformers").version == "5.23.0"
    assert "has no end" in refused({**files, "config.json": labels + files["config.json"][1:-1]}, "transformers")


def test_all_shards_that_the_index_names_have_to_be_there_and_whole() -> None:
    files = formats.transformers(shards=3)
    assert choose(files, "transformers").format == "transformers"
    assert choose(files, "safetensors").path.name == "model-00001-of-00003.safetensors"
    last = "model-00003-of-00003.safetensors"
    missing = {path: data for path, data in files.items() if path != last}
    for served in ("transformers", "safetensors"):
        assert f"`{last}`, which it names, is not there" in refused(missing, served)
        assert f"`{last}` is a damaged" in refused({**files, last: files[last][:-1]}, served)


@pytest.mark.parametrize(
    ("data", "damage"),
    [
        (formats.safetensors()[:-1], "its data are 3999 bytes of 4000"),
        (formats.safetensors() + b"x", "1 bytes follow its data"),
        (b"\x02\0\0\0\0\0\0\0{]", "its header is none of safetensors"),
        (b'\x20\0\0\0\0\0\0\0{"w":{"data_offsets":[0,9e999]}}', "its header is none of safetensors"),
    ],
)
def test_the_header_of_safetensors_says_how_long_the_data_are(data: bytes, damage: str) -> None:
    assert damage in refused({"m.safetensors": data}, "safetensors")


def test_gguf_is_as_long_as_its_tensors() -> None:
    for alignment in (1, 32, 64):
        assert choose({"m": formats.gguf(alignment)}, "gguf").format == "gguf"
    whole = formats.gguf()
    assert f"it has {len(whole) - 1} bytes of {len(whole)}" in refused({"m": formats.gguf(cut_bytes=1)}, "gguf")
    for cut in range(8, len(whole) - 300, 97):
        assert "it ends within its header" in refused({"m": whole[:cut]}, "gguf")
    assert "of GGUF version 1" in refused({"m": b"GGUF\x01\0\0\0" + whole[8:]}, "gguf")


def test_external_data_of_onnx_have_to_be_there_and_long_enough() -> None:
    _, _, files = MODELS["onnx"]
    assert "`m.data`, which it names, is not there" in refused({"m.onnx": files["m.onnx"]}, "onnx")
    assert "is 8095 bytes of 8096" in refused({**files, "m.data": bytes(8095)}, "onnx")
    outside = formats.onnx(external={"../m.data": (0, 1)})
    assert "`../m.data`, which it names, is not there" in refused({"sub/m.onnx": outside, "m.data": b"xx"}, "onnx")


# Of 10^5 values, were it read; each further line has ten times as many.
MERGES = b"a: &a {x: 1}\n" + b"".join(
    b"%c: &%c {<<: [%s]}\n" % (n, n, b", ".join([b"*%c" % (n - 1)] * 10)) for n in b"bcdef"
)


@pytest.mark.parametrize(
    ("text", "damage"),
    [
        (b"flavors: {python_function: {data: gone}}\n", "`gone`, which it names, is not there"),
        (b"mlflow_version: 3.1.0\n", "has no flavour `python_function`"),
        (b"flavors: {sklearn: {}}\n", "has no flavour `python_function`"),
        (b"[1, 2]\n", "its content is not that of mlflow"),
        (b"a: !!timestamp b\n", "its content is not that of mlflow"),
        (b"a: !!int ''\n", "its content is not that of mlflow"),
        (b"a: !!bool b\n", "its content is not that of mlflow"),
        (formats.mlflow()["MLmodel"][:-4], "it ends within a line"),
        (b"a: [\n", "its content is not that of mlflow"),
        (MERGES, "its content is not that of mlflow"),
        (b"\xff\xfe\0", "its content is not that of mlflow"),
    ],
)
def test_an_mlmodel_names_a_python_function_and_its_files(text: bytes, damage: str) -> None:
    assert damage in refused({**formats.mlflow(), "MLmodel": text}, "mlflow")


def test_an_mlmodel_longer_than_what_is_looked_at_is_known() -> None:
    files = formats.mlflow()
    long = files["MLmodel"] + b"signature:\n  inputs: '" + b"x" * 100_000 + b"'\nutc_time_created: '2026'\n"
    assert choose({**files, "MLmodel": long}, "mlflow").version == "3.17.2"
    again = b"flavors: {python_function: {loader_module: own, data: model.ubj}}\n"
    assert "runs the code" in refused({**files, "MLmodel": long + again}, "mlflow")
    hidden = long + b"# " + b"x" * 2**20 + b"\n" + again
    assert "it is longer than 1048576 bytes" in refused({**files, "MLmodel": hidden}, "mlflow")


def test_an_mlflow_model_that_runs_code_needs_to_be_allowed() -> None:
    pickled = joblib_bytes()
    for files in (
        formats.mlflow(model="model.pt2", data=formats.torch_export(), loader_module="mlflow.pytorch"),
        formats.mlflow(model="model.pkl", data=pickled, loader_module="mlflow.sklearn"),
        formats.mlflow(loader_module="loader"),
        formats.mlflow(code="code") | {"code/own.py": b""},
    ):
        assert "loading it runs the code in it" in refused(files, "mlflow")
        assert choose(files, "mlflow", allow_pickle=True).needs_pickle
    # What lies beside safetensors is loaded by nobody.
    assert not choose({**formats.transformers(), "training_args.pkl": pickled}, "transformers").needs_pickle


def joblib_bytes(compress: object = 0) -> bytes:
    buffer = io.BytesIO()
    joblib.dump(DummyClassifier().fit([[0.0], [1.0]], [0, 1]), buffer, compress=compress)
    return buffer.getvalue()


def test_a_zip_with_more_members_than_a_usual_end_holds_is_known() -> None:
    data = formats.torch_export(members=2000)
    assert len(data) > 300_000
    assert choose({"m": data}, "torch-export", allow_pickle=True).version == "2.13.0+cpu"


def test_members_of_a_zip_that_share_their_bytes_are_not_read_one_by_one() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", bytes(60_000))
    data = buffer.getvalue()
    begin, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entry = data[begin:end]
    entries = b"".join(entry[:-8] + b"%08d" % number for number in range(2000))  # all are the first
    data = data[:begin] + entries + data[end : end + 12] + len(entries).to_bytes(4, "little") + data[end + 16 :]
    tracemalloc.start()
    try:
        look({"m.pt": data})
        assert tracemalloc.get_traced_memory()[1] < 20 * len(data)
    finally:
        tracemalloc.stop()


def test_a_block_of_an_index_that_is_named_again_and_again_costs_no_time() -> None:
    def entries(value: bytes, count: int) -> bytes:
        return (bytes([0, 1, len(value)]) + b"k" + value) * count + bytes(4)  # no restarts

    block = entries(b"", 8000)
    handle = b"\0\x84\xfa\x01"  # where it begins, and its 32004 bytes
    names = entries(handle, 500)
    footer = b"\0\0" + b"\x89\xfa\x01" + b"\xa4\x1f"  # none, and 4004 bytes from 32009 on
    index = block + bytes(5) + names + bytes(5) + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")
    begun = time.process_time()
    assert look({"variables.index": index}) == ()
    assert time.process_time() - begun < 3


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)])
def test_a_cut_joblib_file_is_seen_in_every_compression(compress: object) -> None:
    data = joblib_bytes(compress)
    assert choose({"m.joblib": data}, "joblib", allow_pickle=True).version == sklearn.__version__
    assert "has no end" in refused({"m.joblib": data[:-9]}, "joblib", allow_pickle=True)


def test_a_stop_within_joblib_s_raw_arrays_is_not_the_end() -> None:
    model = DummyClassifier().fit([[0.0], [1.0]], [0, 1])
    model.noise_ = np.frombuffer(b"." * 4096, dtype=np.uint8)
    buffer = io.BytesIO()
    joblib.dump(model, buffer)
    assert "has no end" in refused({"m.joblib": buffer.getvalue()[:-1]}, "joblib", allow_pickle=True)


def versioned(format_name: str, version: str) -> Mapping[str, bytes]:
    made = {
        "keras": lambda: {"m.keras": formats.keras(version)},
        "mlflow": lambda: formats.mlflow(version),
        "torch-export": lambda: {"m.pt2": formats.torch_export(version)},
        "transformers": lambda: formats.transformers(version),
    }
    return made[format_name]()


@pytest.mark.parametrize(
    ("name", "saved", "pinned"),
    [
        ("keras", "3.15.1", "keras==2.15"),
        ("mlflow", "3.17.2", "mlflow-skinny==2.20.0"),
        ("mlflow", "3.17.2", "mlflow~=2.20"),
        ("torch-export", "2.13.0+cpu", "torch===1.13.1"),
        ("transformers", "5.23.0", "transformers[torch] == 4.57.1 --hash=sha256:" + "0" * 64),
    ],
)
def test_a_pin_of_another_major_version_is_refused_with_both(name: str, saved: str, pinned: str) -> None:
    message = refused(versioned(name, saved), name, allow_pickle=True, requirements=["numpy==1.0", pinned])
    assert f" {saved}; " in message
    assert pinned.partition(" --hash")[0] in message
    assert "--hash" not in message


def test_a_template_that_names_several_majors_loads_older_models_with_newer_frameworks() -> None:
    files = formats.transformers("4.57.1")
    assert (
        choose(files, "transformers", template_versions=["4", "5"], requirements=["transformers==5.23.0"]).notes == ()
    )
    assert "transformers 4.57.1" in refused(files, "transformers", requirements=["transformers==5.23.0"])
    newer = formats.transformers("5.23.0")
    pin = ["transformers==4.57.1"]
    assert "transformers 5.23.0" in refused(newer, "transformers", template_versions=["4", "5"], requirements=pin)


@pytest.mark.parametrize(
    ("pinned", "note"),
    [
        ("scikit-learn==1.0", "another minor version"),
        ("scikit-learn==1.99.1", "another minor version"),
        ("scikit-learn>=1.5", f"`server.requirements: [scikit-learn=={sklearn.__version__}]` serves it with the same"),
        ("scikit-learn>=1.99", "scikit-learn>=1.99 is newer: compare"),
        (f"scikit-learn=={sklearn.__version__}", ""),
        ("scikit-learn==1.*", ""),
    ],
)
def test_scikit_learn_s_minor_versions_are_worth_a_note(pinned: str, note: str) -> None:
    chosen = choose({"m.joblib": joblib_bytes()}, "joblib", allow_pickle=True, requirements=[pinned])
    assert [note in said for said in chosen.notes] == ([True] if note else [])


def test_an_older_minor_version_is_worth_a_note_of_any_framework() -> None:
    files = {"m.ubj": formats.UBJ}
    assert choose(files, "xgboost-ubj", requirements=["xgboost-cpu==3.1.0"]).notes
    assert not choose(files, "xgboost-ubj", requirements=["xgboost-cpu==3.9.0"]).notes


@pytest.mark.parametrize("version", ["1.20.1", "1.23.2", "1.99.0"])
@pytest.mark.parametrize("opset", [21, 23])
def test_an_opset_that_the_pinned_onnxruntime_does_not_know_is_refused(opset: int, version: str) -> None:
    files, pin = {"m.onnx": formats.onnx(opset)}, [f"onnxruntime=={version}"]
    if (opset, version) == (23, "1.20.1"):
        assert re.search(
            r"opset 23; onnxruntime==1\.20\.1 loads models up to 21", refused(files, "onnx", requirements=pin)
        )
    else:
        assert choose(files, "onnx", requirements=pin).opset == opset


@given(st.sampled_from(sorted(MODELS)), st.data())
def test_no_flipped_byte_and_no_cut_breaks_the_detection(name: str, data: st.DataObject) -> None:
    files = dict(MODELS[name][2])
    path = data.draw(st.sampled_from(sorted(files)))
    good = files[path]
    at = data.draw(st.integers(0, min(len(good), 700) - 1))
    for bad in (good[:at], good[:at] + bytes([data.draw(st.integers(0, 255))]) + good[at + 1 :]):
        with contextlib.suppress(ModelError):
            choose({**files, path: bad}, name)


def test_every_format_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    for name in (*MODELS, "joblib", "pickle", "skops", "torch", "catboost", "hdf5", "tflite"):
        assert f"`{name}`" in page
