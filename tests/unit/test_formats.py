import base64
import io
import os
import pickle
import warnings
from pathlib import Path, PurePosixPath

import joblib
import numpy as np
import pytest
import sklearn
import skops.io
from hypothesis import given
from hypothesis import strategies as st
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlimg.formats import Detected, check_formats, detect
from mlimg.runtime.errors import ModelError
from tests.support import formats
from tests.support.formats import LIGHTGBM, UBJ, safetensors
from tests.support.models import DictSource

SKLEARN = ("joblib", "pickle", "skops")
# joblib.dump(DummyClassifier().fit(…), compress="lz4"), made where the lz4 package is.
LZ4 = base64.b85decode(
    "1R_lsKtRCM0RRADfCQCy0RRC2@C1wvb8Bp6VRCLRWOZ$Ad6bL~L<j)&NkeR5b8~5CX=QShlawielzo&aj0kgda$$63XL*#21#og{"
    "Z*r83402&^WN&R>b97;JWt2{g2xD(<b97;Dbd*kv4sKs&Wnpx6a%FR0X>MPXO96}tUqb-%2xtb34s&o}a&u*0Z*_EVb#z~piHr(v"
    "4FC~yF90A2V}=0m4rOy+l#CN<Z(?j|VlHlVZE$&CaA{*}Y-N;;5l#;PszGvcVR=__VQ_G+03mf^Kmak6j0H9TV3dppZe(FB0Q44="
    "la!1Fb7*03Wt2+-g_Mj1Z*pX1a+Hh#LzIjKWOR9OWt3<X3IOp9la!1CX*iULh=-I?lqgFBi~&59PEJlr|NsC01px8}O8|6~VvGu5"
    "Y;13LUu|t+aFmFQ8>j#QZUFcQUtw%%XKrm}ZggK_d30rSluHnGVh#TR022TK00Wc(GXRxi2><{R0R;sCK}!OR3=IGgUw#2XUzBJN"
    ">;PbB6KED_7s~**Xc=f4Xd7r9i~?q}04``Du>eqLBZz1uiU1V@fB+=mKL`LMl^%cqBM@I70`LW2c4cyNX>V?nj0G_+H!d=ibz&|6"
    "0000"
)


def estimator(columns: int = 20) -> LogisticRegression:
    dice = np.random.default_rng(0)
    return LogisticRegression().fit(dice.normal(size=(50, columns)), np.arange(50) % 2)


def joblib_bytes(model: object, compress: object = 0) -> bytes:
    buffer = io.BytesIO()
    joblib.dump(model, buffer, compress=compress)
    return buffer.getvalue()


def look(data: bytes, name: str = "file") -> Detected | None:
    source = DictSource({name: data})
    found = detect(source, source.inventory())
    assert len(found) <= 1
    return found[0] if found else None


def seen(data: bytes, name: str = "file") -> tuple[str, str] | None:
    found = look(data, name)
    return (found.format, found.framework) if found and not found.damage else None


def damage(data: bytes, name: str = "file") -> str:
    found = look(data, name)
    assert found is not None
    return found.damage


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol_are_known_with_what_they_hold(protocol: int) -> None:
    data = pickle.dumps(estimator(), protocol)
    assert seen(data) == ("pickle", "sklearn")
    assert seen(pickle.dumps(make_pipeline(StandardScaler(), estimator()), protocol)) == ("pickle", "sklearn")
    found = look(data)
    assert found is not None
    assert found.needs_pickle
    # The opcode after it, `q` in protocols 1 to 3, may pass for a part of a version.
    assert found.version == sklearn.__version__


@pytest.mark.parametrize("compress", [0, *(("zlib", "gzip", "bz2", "lzma", "xz"))])
@pytest.mark.parametrize("columns", [3, 20_000])
def test_joblib_files_are_known_in_every_compression(compress: str | int, columns: int) -> None:
    data = joblib_bytes(estimator(columns), (compress, 3) if compress else 0)
    assert seen(data) == ("joblib", "sklearn")


def test_a_bzip2_block_larger_than_a_usual_head_is_known() -> None:
    model = estimator(3)
    model.noise_ = os.urandom(3_000_000)
    data = joblib_bytes(model, ("bz2", 9))
    assert seen(data) == ("joblib", "sklearn")


def test_joblib_files_in_lz4_are_known() -> None:
    assert seen(LZ4) == ("joblib", "sklearn")


@given(st.binary(max_size=300))
def test_no_bytes_confuse_the_reader_of_lz4(data: bytes) -> None:
    look(b"\x04\x22\x4d\x18" + data)
    look(LZ4[:40] + data)


def test_a_pickle_without_arrays_is_what_its_name_says() -> None:
    data = joblib_bytes(StandardScaler())
    assert data == pickle.dumps(StandardScaler(), pickle.DEFAULT_PROTOCOL)
    assert seen(data, "model.joblib") == ("joblib", "sklearn")
    assert seen(data, "model.pkl") == ("pickle", "sklearn")


def test_skops_files_are_known_and_need_no_pickle() -> None:
    found = look(skops.io.dumps(estimator()))
    assert found == Detected(
        "sklearn", "skops", needs_pickle=False, path=PurePosixPath("file"), version=sklearn.__version__
    )


def zipped(*names: str) -> bytes:
    return formats.zipped(dict.fromkeys(names, b"x" * 100))


ONNX = b"\x08\x08\x12\x07pytorch\x1a\x032.4\x3a\x10" + bytes(16) + b"\x42\x04\x0a\x00\x10\x11"


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        (ONNX, "m", ("onnx", "onnx")),
        (safetensors(), "m", ("safetensors", "custom")),
        (b"GGUF\x03\x00\x00\x00" + bytes(16), "m", ("gguf", "llama.cpp")),
        (b'{"learner":{"attributes":{}},"version":[2,1,0]}', "m", ("xgboost-json", "xgboost")),
        (b'{\n  "learner": {},\n  "version": [3, 4, 1]\n}\n', "m", ("xgboost-json", "xgboost")),
        (UBJ, "m", ("xgboost-ubj", "xgboost")),
        (LIGHTGBM, "m", ("lightgbm", "lightgbm")),
        (b"CBM1....", "m", ("catboost", "catboost")),
        (b"\x89HDF\r\n\x1a\n", "m", ("hdf5", "keras")),
        (b"\x1c\x00\x00\x00TFL3", "m", ("tflite", "tensorflow")),
        (zipped("metadata.json", "config.json", "model.weights.h5"), "m", ("keras", "keras")),
        (zipped("archive/data.pkl", "archive/data/0", "archive/version"), "m", ("torch", "pytorch")),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "m", ("torch", "pytorch")),
        (b"\x08\x01\x12\xff\x01" + bytes(255), "saved_model.pb", ("savedmodel", "tensorflow")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_other_formats_are_known_by_content(data: bytes, name: str, expected: tuple[str, str]) -> None:
    assert seen(data, name) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"I am a README. Nothing more.\n",
        b"(1,2)\n.",
        b"N.",
        b'{"learning_rate": 0.1, "xlearner": {}}',
        b"name,version\n1,2\n",
        b"\x1f\x8b",
        b"x",
        b"BZh",
        zipped("readme.txt"),
        b"\x08\x96\x01",
        bytes(100),
        b"import os\nclass A:\n    pass\n",
    ],
)
def test_what_is_no_model_is_not_taken_for_one(data: bytes) -> None:
    assert look(data) is None


@given(st.binary(max_size=200), st.sampled_from(["x", "m.joblib", "m.skops", "m.onnx", "saved_model.pb"]))
def test_no_bytes_break_the_detection(data: bytes, name: str) -> None:
    look(data, name)


@given(
    st.sampled_from([ONNX, UBJ, LIGHTGBM, safetensors(), LZ4, zipped("schema.json"), pickle.dumps(estimator())]),
    st.data(),
)
def test_no_flipped_byte_breaks_the_detection(good: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(good) - 1))
    look(good[:at] + bytes([data.draw(st.integers(0, 255))]) + good[at + 1 :])
    look(good[:at])


class Boom:
    """Says so if anybody unpickles it."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (Boom.marker,)

    marker = ""


def test_nothing_is_ever_deserialised(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    Boom.marker = str(marker)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps(Boom(), protocol)
        assert look(data) is not None
    assert not marker.exists()
    pickle.loads(data)
    assert marker.is_dir(), "the pickle is a live one"


JOBLIB = joblib_bytes(DummyClassifier().fit(np.zeros((4, 1)), [0, 1, 0, 1]))
SKOPS = skops.io.dumps(StandardScaler())


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"", "model.joblib", "it is empty"),
        (b"", "model.skops", "it is empty"),
        (b"<html>404</html>", "model.joblib", "its content is not that of joblib"),
        (b"version https://git-lfs.github.com/spec/v1\n", "model.onnx", "its content is not that of onnx"),
        (JOBLIB[:-1], "model.joblib", "it has no end"),
        (JOBLIB[:-1], "model", "it has no end"),
        (SKOPS[:-30], "model.skops", "it is a zip without its end"),
        (safetensors()[:20], "m.safetensors", "it ends within its header"),
        (ONNX[:-7], "m.onnx", "it ends within its graph"),
        (UBJ[:-2], "m.ubj", "it ends within the object"),
        (b'{"learner":{"attributes":{}}', "m.json", "it ends within the object"),
        (LIGHTGBM[:-30], "m.txt", "it has no end"),
        (b"tree\nversion=v4\nfeature_infos=[0:1]\n", "m.txt", "it has no end"),
    ],
)
def test_damage_that_the_ends_show_is_named(data: bytes, name: str, message: str) -> None:
    assert damage(data, name) == message


@pytest.mark.parametrize(
    "data",
    [
        JOBLIB,
        SKOPS,
        safetensors(),
        ONNX,
        UBJ,
        LIGHTGBM,
        LIGHTGBM.partition(b"\npandas")[0],
        LIGHTGBM.replace(b"null", b'[["' + b"x" * 100_000 + b'"]]'),
    ],
    ids=range(8),
)
def test_whole_files_show_no_damage(data: bytes) -> None:
    assert damage(data) == ""


def choose(files: dict[str, bytes], formats: tuple[str, ...], *, allow_pickle: bool = True, **more: object) -> Detected:
    source = DictSource(files)
    return check_formats(detect(source, source.inventory()), formats, allow_pickle=allow_pickle, **more)


def test_the_one_file_that_the_template_serves_is_the_model() -> None:
    chosen = choose({"model.skops": SKOPS, "README.md": b"# m", "other.onnx": ONNX}, SKLEARN, allow_pickle=False)
    assert (chosen.path, chosen.format, chosen.framework) == (PurePosixPath("model.skops"), "skops", "sklearn")


def test_pickles_need_to_be_allowed() -> None:
    with pytest.raises(ModelError, match=r"model\.joblib` is a joblib file: loading it runs") as caught:
        choose({"model.joblib": JOBLIB}, SKLEARN, allow_pickle=False)
    assert "model.allow_pickle: true" in caught.value.hint
    assert choose({"model.joblib": JOBLIB}, SKLEARN).needs_pickle


def test_another_format_is_named_with_the_template_that_serves_it() -> None:
    with pytest.raises(
        ModelError, match=r"`model\.joblib` looks like onnx; the template serves joblib, pickle or skops"
    ) as caught:
        choose({"model.joblib": ONNX}, SKLEARN, served_by={"onnx": "onnxruntime"}.get)
    assert caught.value.hint == "`server.template: onnxruntime` serves it"
    with pytest.raises(ModelError) as caught:
        choose({"model.joblib": ONNX}, SKLEARN)
    assert "mlimg templates" in caught.value.hint


def test_no_model_file_at_all_is_refused() -> None:
    with pytest.raises(ModelError, match="no file of the model looks like joblib, pickle or skops"):
        choose({"README.md": b"# nothing"}, SKLEARN)


def test_a_damaged_model_is_refused_in_one_line() -> None:
    for files in ({"model.joblib": b""}, {"model.joblib": JOBLIB[:-1]}, {"model.skops": SKOPS[:-30]}):
        with pytest.raises(ModelError, match="is a damaged") as caught:
            choose(files, SKLEARN)
        assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("data", "version"),
    [(b'{"learner":{},"version":[2,1,4]}', "2.1.4"), (UBJ, "3.2.0"), (LIGHTGBM, "4"), (ONNX, "")],
)
def test_a_model_of_a_version_that_the_template_does_not_serve_is_refused(data: bytes, version: str) -> None:
    found = look(data, "m")
    assert found is not None
    assert found.version == version
    formats = (found.format,)
    assert choose({"m": data}, formats) == found
    for served in (version, version.partition(".")[0]):
        assert choose({"m": data}, formats, template_versions=("1", served)) == found
    if version:
        with pytest.raises(
            ModelError, match=f"`m` was saved by {found.framework} {version}; the template serves"
        ) as no:
            choose({"m": data}, formats, template_versions=("1", version[:1] + "0"))
        assert "\n" not in no.value.message


def test_several_candidates_are_not_guessed_between_unless_they_are_shards() -> None:
    with pytest.raises(ModelError, match=r"several files that could be it: `a\.joblib`, `b\.skops`"):
        choose({"a.joblib": JOBLIB, "b.skops": SKOPS}, SKLEARN)
    shards = {f"model-{number}-of-3.safetensors": safetensors() for number in (1, 2, 3)}
    assert choose(shards, ("safetensors",)).path.name == "model-1-of-3.safetensors"


@pytest.mark.parametrize("formats", [(), ("any",)])
def test_a_template_for_anything_takes_anything_but_pickles_that_nobody_allowed(formats: tuple[str, ...]) -> None:
    assert choose({"x.bin": b"?"}, formats) == Detected("custom", "custom", needs_pickle=False, path=PurePosixPath())
    one = choose({"m": ONNX}, formats, allow_pickle=False)
    assert (one.framework, one.format, one.path.name) == ("custom", "onnx", "m")
    assert choose({"a": ONNX, "b": JOBLIB}, formats).format == "custom"
    with pytest.raises(ModelError, match="`b` is a joblib file"):
        choose({"a": ONNX, "b": JOBLIB}, formats, allow_pickle=False)
    with pytest.raises(ModelError, match="`b` is a joblib file"):
        choose({"b": JOBLIB + b"what joblib does not read"}, formats, allow_pickle=False)
    assert choose({"model.pkl": b"a name alone proves nothing"}, formats, allow_pickle=False).format == "custom"


def test_a_pickled_class_of_the_user_s_own_is_of_the_template_s_framework() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pickle.dumps({"a": Boom})
    chosen = choose({"model.pkl": data}, SKLEARN, template_frameworks=("sklearn",))
    assert (chosen.framework, chosen.format) == ("sklearn", "pickle")
