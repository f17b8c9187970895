"""Every text of the spec against characters that mean something to a shell, a Dockerfile, a URL or a terminal."""

from dataclasses import dataclass

import pytest

from mlimg.spec.load import LoadedSpec
from mlimg.spec.problems import InvalidSpecError
from mlimg.spec.schema import keys

from .conftest import Load, attempt, value_of, with_value

HOSTILE = {
    "LF": "\n",
    "CR": "\r",
    "NUL": "\0",
    "VT": "\v",
    "NEL": "\x85",
    "LS": "\u2028",
    "RLO": "\u202e",
    "surrogate": "\ud800",
    "backslash": "\\",
    "variable": "$X",
    "backtick": "`",
    "double": '"',
    "single": "'",
    "heredoc": "<<EOF",
    "dash": "-",
    "long": "x" * 70_000,
}
# Free text: whatever places it in an instruction quotes it. Paths: quotes and the like are names of files.
PRINTABLE = frozenset({"backslash", "variable", "backtick", "double", "single", "heredoc", "dash"})
IN_PATHS = frozenset({"backtick", "double", "single", "heredoc", "dash"})


@dataclass(frozen=True)
class Text:
    """A field that holds text: a value it takes, and the hostile texts that it may take on purpose."""

    key: str
    good: str
    admitted: frozenset[str] = frozenset()
    in_list: bool = False


TEXTS = [
    Text("image", "registry.example.com/serving/digits"),
    Text("pattern", "load"),
    Text("server.template", "sklearn", frozenset({"dash"})),
    Text("server.template", "./templates/own", IN_PATHS),
    Text("server.image", "registry.example.com:5000/serving/sklearn"),
    Text("server.version", "1.0", frozenset({"dash"})),
    Text("server.base", "python:3.13-slim", frozenset({"dash"})),
    Text("server.base", "python@sha256:" + "a" * 64),
    Text("server.requirements", "scikit-learn==1.7.2", frozenset({"dash"}), in_list=True),
    Text("server.requirements", "requirements.txt", IN_PATHS),
    Text("server.code", "./serve", IN_PATHS),
    Text("server.options.method", "predict_proba", PRINTABLE),
    Text("server.env.NAME", "value", PRINTABLE),
    Text("model.name", "digits", frozenset({"dash"})),
    Text("model.version", "3", frozenset({"dash"})),
    Text("model.source", "./model", IN_PATHS),
    Text("model.source", "s3://bucket/models/digits", frozenset({"dash"})),
    Text("model.source", "oci://registry.example.com/models/digits:3", frozenset({"dash"})),
    Text("model.source", "hf://organisation/digits@main", frozenset({"dash"})),
    Text("model.source", "models:/digits@champion", frozenset({"dash"})),
    Text(
        "model.include",
        "weights/**",
        PRINTABLE - {"backslash"},
        in_list=True,
    ),
    Text(
        "model.exclude",
        "**/*.tmp",
        PRINTABLE - {"backslash"},
        in_list=True,
    ),
    Text("model.sha256", "a" * 64),
    Text("model.store", "oci://registry.example.com/models", frozenset({"dash"})),
    Text("model.store", "s3://bucket/models", frozenset({"dash"})),
    Text("model.store", "./store", IN_PATHS),
    Text("build.platform", "linux/arm64"),
    Text("build.index", "https://mirror.example.com/simple", frozenset({"dash"})),
    Text("build.indexes.torch", "https://mirror.example.com/simple", frozenset({"dash"})),
    Text("build.secrets", "netrc", in_list=True),
    Text("build.insecure_registries", "registry.lab:5000", in_list=True),
]


def taken(loaded: LoadedSpec, field: Text) -> str:
    value = value_of(loaded, field.key)
    return str(value[0] if field.in_list else value)


def test_every_text_of_the_schema_is_tried() -> None:
    flags = {"model.allow_pickle", "model.follow_links"}
    tried = {field.key.replace(".method", "").replace(".NAME", "").replace(".torch", "") for field in TEXTS}
    assert tried == {key.name for key in keys()} - flags


@pytest.mark.parametrize("field", TEXTS, ids=lambda field: f"{field.key}={field.good[:12]}")
def test_no_text_of_a_field_can_mean_more_than_itself(load: Load, field: Text) -> None:
    """A9: each hostile text, before, within and after a good value, in the file and by --set: refused, or as it is."""
    assert taken(load(with_value(field.key, [field.good] if field.in_list else field.good)), field) == field.good
    for name, hostile in HOSTILE.items():
        middle = len(field.good) // 2
        for text in (hostile + field.good, field.good[:middle] + hostile + field.good[middle:], field.good + hostile):
            for spec, sets in (
                (with_value(field.key, [text] if field.in_list else text), ()),
                (with_value("model.version", "3"), (f"{field.key}={text}",)),
            ):
                outcome = attempt(load, spec, *sets)
                if isinstance(outcome, LoadedSpec):
                    assert name in field.admitted, f"{field.key} takes {name}: {text[:40]!r}"
                    assert taken(outcome, field) == text
                else:
                    assert outcome.status == 10
                    assert outcome.message.isprintable()
                    assert len(outcome.message) < 600


@pytest.mark.parametrize("name", sorted(PRINTABLE))
def test_free_text_takes_what_can_be_printed(load: Load, name: str) -> None:
    """A9, the twins: an option and a variable keep every printable character."""
    for key in ("server.options.method", "server.env.NAME"):
        for text in (HOSTILE[name], f"é{HOSTILE[name]}更", f" {HOSTILE[name]} "):
            assert value_of(load(with_value(key, text)), key) == text
            assert value_of(load(with_value("model.version", "3"), f"{key}={text}"), key) == text


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_names_in_mappings_hold_nothing_hostile(load: Load, hostile: str) -> None:
    """A9: the names of options and variables, too."""
    for section, good in (("server.options", "method"), ("server.env", "NAME")):
        for name in (hostile + good, good + hostile):
            if section == "server.options" and name == "method-":
                continue
            with pytest.raises(InvalidSpecError):
                load(with_value(section, {name: "x"}))


@pytest.mark.parametrize(
    ("key", "text", "rule"),
    [
        ("image", "registry.example.com/Digits", "lower-case|not a repository"),
        ("image", "registry.example.com/a..b", "not a repository"),
        ("image", "registry.example.com/a//b", "not a repository"),
        ("image", "registry.example.com/digits:3", "tag"),
        ("image", "registry.example.com/digits@sha256:" + "a" * 64, "tag or digest"),
        ("image", "registry.example.com:99999/digits", "host"),
        ("image", "https://registry.example.com/digits", "without scheme"),
        ("image", "registry.example.com/" + "a" * 256, "not a repository"),
        ("image", "registry_example.com:5000/digits", "not a registry"),
        ("server.base", "python:3.13:slim", "not a registry|cannot be a tag|not a repository"),
        ("server.base", "python@sha256:abc", "64 hex digits"),
        ("model.version", "1.0+cu121", "cannot be a tag"),
        ("model.version", "a" * 129, "at most 128"),
        ("model.version", ".1", "cannot be a tag"),
        ("model.version", "", "cannot be a tag"),
        ("server.version", "a b", "cannot be a tag"),
        ("model.name", "Digits", "lower-case"),
        ("model.name", "a/b", "cannot name a model"),
        ("model.name", "a..b", "cannot name a model"),
        ("model.name", "con", "cannot be a file on every system"),
        ("server.template", "SkLearn", "neither a template's name nor a folder"),
        ("server.template", "_python", "neither a template's name nor a folder"),
        ("server.requirements", "scikit-learn==1.7.2", "requirements themselves are a list"),
        ("server.requirements", ["requirements.txt"], "write it alone"),
        ("server.requirements", ["-r other.txt"], "is an option"),
        ("server.requirements", ["--index-url=https://x"], "address|is an option"),
        ("server.requirements", ["a @ file:///etc"], "https://host/path"),
        ("server.requirements", ["a @ https://user:secret@host/a.whl"], "neither credentials"),
        ("server.requirements", ["a; import os"], "not a requirement"),
        ("server.requirements", ["./local"], "not a requirement"),
        ("server.options", {"a b": 1}, "cannot name an option"),
        ("server.options.n", 2**53 + 1, "at most"),
        ("server.env", {"1A": "x"}, "cannot name a variable"),
        ("server.env", {"A-B": "x"}, "cannot name a variable"),
        ("server.env", {"MLIMG_MODEL": "x"}, "when a container starts"),
        ("server.env", {"mlimg_model_dir": "x"}, "when a container starts"),
        ("server.env", {"PYTHONPATH": "/x"}, "set by the image itself"),
        ("server.env", {"HOME": "/x"}, "set by the image itself"),
        ("model.source", "ftp://host/model", "`ftp:` is not supported here"),
        ("model.source", "s3://bucket", "such as s3://bucket/folder"),
        ("model.source", "gs://bucket/a/../b", "such as gs://bucket/folder"),
        ("model.source", "https://host/model.onnx", "sha256 is missing"),
        ("model.source", "https://host/model.onnx?X-Amz-Signature=1", "neither credentials nor a query"),
        ("model.source", "http://host/model.onnx", "models come over https"),
        ("model.source", "https://169.254.169.254/latest/meta-data", "no place of models"),
        ("model.source", "https://metadata.google.internal/model.onnx", "no place of models"),
        ("model.source", "https://host/folder/", "such as https://"),
        ("model.source", "oci://registry.example.com/models/digits", "needs a version"),
        ("model.source", "hf://digits", "such as hf://"),
        ("model.source", "models:/digits/Production", "such as models:/name/3"),
        ("model.include", ["../x"], "a part of a pattern"),
        ("model.include", ["/etc/*"], "expected a pattern"),
        ("model.exclude", ["a**"], "stands alone"),
        ("model.exclude", ["*.tmp", "*.tmp"], "listed twice"),
        ("model.sha256", "A" * 64, "64 hex digits"),
        ("model.store", "ftp://bucket/models", "`ftp:` is not supported here: expected oci://"),
        ("model.store", "s3://Bucket/models", "bucket's name"),
        ("model.store", "s3://bucket/a/../models", "`..`"),
        ("model.store", "az://container/models?sv=1", "no query"),
        ("model.store", "oci://registry.example.com/models:3", "tag"),
        ("model.store", "oci:registry.example.com/models", "`oci:` is not supported here"),
        ("build.platform", "linux/x86_64", "did you mean linux/amd64"),
        ("build.platform", "windows/amd64", "not a platform"),
        ("build.platform", "linux", "not a platform"),
        ("build.index", "http://mirror.example.com/simple", "over https"),
        ("build.index", "https://mirror.example.com/simple?token=x", "without query"),
        ("build.index", "ftp://mirror.example.com", "expected an address"),
        ("build.index", "https://mirror.example.com:0/simple", "not a port"),
        ("build.secrets", ["netrc", "netrc"], "listed twice"),
        ("build.secrets", ["ca_bundle"], "--ca-bundle"),
        ("build.secrets", ["../netrc"], "cannot name a secret"),
        ("build.insecure_registries", ["http://registry.lab"], "host"),
        ("build.insecure_registries", ["registry.lab/x"], "host"),
        ("build.insecure_registries", ["lab"], "host"),
    ],
)
def test_a_rule_is_told_before_anything_is_looked_up(load: Load, key: str, text: object, rule: str) -> None:
    """A11."""
    with pytest.raises(InvalidSpecError, match=rule):
        load(with_value(key, text))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("image", "digits"),
        ("image", "user/digits"),
        ("image", "localhost:5000/a_b/c__d/e-f.g"),
        ("image", "[::1]:5000/digits"),
        ("image", "registry.example.com:65535/digits"),
        ("server.base", "registry.example.com/python:3.13-slim@sha256:" + "a" * 64),
        ("model.version", "1.0-cu121"),
        ("model.version", "a" * 128),
        ("model.name", "a-b.c_d"),
        ("server.template", "./templates/Mine"),
        ("server.requirements", []),
        ("server.requirements", ["numpy>=1.26,<3", "uvicorn[standard] ~= 0.34", "torch==2.5.1+cu121", "a==1.*", "b"]),
        ("server.requirements", ["a @ https://host.example.com/a-1.0-py3-none-any.whl#sha256=" + "a" * 64]),
        ("server.requirements", ["""a>=1; python_version < "3.13" and (sys_platform == 'linux')"""]),
        ("server.requirements", ["a==1 --hash=sha256:" + "a" * 64 + " --hash=sha256:" + "b" * 64]),
        ("server.requirements", ['a==1 ; os_name == "posix" --hash=sha256:' + "a" * 64]),
        ("server.requirements", "./requirements.lock"),
        ("server.options.n", -(2**53)),
        ("server.env", {"_A1": "", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}),
        ("build.platform", "linux/arm/v7"),
        ("build.platform", "linux/amd64/v3"),
        ("build.index", "http://localhost:3141/root/pypi/+simple/"),
        ("build.index", "http://127.0.0.1:3141/simple"),
        ("build.index", "https://pkgs.example.com:8443/feed%40Local/simple/"),
        ("build.secrets", ["netrc", "hf_token"]),
        ("build.insecure_registries", ["registry.lab", "10.0.0.1:5000", "[fd00::1]:5000", "localhost"]),
    ],
)
def test_what_keeps_the_rules_is_taken_as_written(load: Load, key: str, text: object) -> None:
    """A11, the twins."""
    value = value_of(load(with_value(key, text)), key)
    assert (list(value) if isinstance(value, tuple) else value) == text


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("build.index", "https://user:s3cret@mirror.example.com/simple"),
        ("build.index", "https://mirror.example.com/simple?token=s3cret"),
        ("server.requirements", ["a @ https://user:s3cret@host/a.whl"]),
        ("server.requirements", ["--extra-index-url=https://user:s3cret@host/"]),
        ("model.store", "s3://key:s3cret@bucket/models"),
        ("model.source", "https://user:s3cret@host/model"),
        ("model.source", "https://host/model?signature=s3cret"),
        ("model.source", "s3://key:s3cret@bucket/models"),
        ("model.source", "oci://user:s3cret@host/models/digits:3"),
        ("model.source", "hf://user:s3cret@organisation/repository"),
        ("image", "https://user:s3cret@host/image"),
    ],
)
def test_a_message_shows_no_credentials(load: Load, key: str, text: object) -> None:
    """What may hold a password is refused without being repeated."""
    for spec, sets in ((with_value(key, text), ()), (with_value("model.version", "3"), (f"{key}={text}",))):
        with pytest.raises(InvalidSpecError) as caught:
            load(spec, *sets)
        assert "s3cret" not in f"{caught.value} {caught.value.hint} {caught.value.log}"


def test_the_longest_text_of_a_variable_is_32_kib(load: Load) -> None:
    assert load(with_value("server.env.A", "ü" * 16_384))
    with pytest.raises(InvalidSpecError, match="longer than 32 KiB"):
        load(with_value("server.env.A", "ü" * 16_384 + "x"))


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"source": "./model", "sha256": "a" * 64}, "sha256 is for an https address"),
        ({"source": "hf://organisation/digits", "sha256": "a" * 64}, "sha256 is for an https address"),
        ({"source": "https://host/model.onnx"}, "sha256 is missing"),
        ({"source": "hf://organisation/digits", "follow_links": True}, "follow_links is for a model on this machine"),
    ],
)
def test_settings_of_a_source_fit_its_kind(load: Load, settings: dict[str, object], rule: str) -> None:
    for good in (
        {"source": "https://host/model.onnx", "sha256": "a" * 64},
        {"source": "./model", "follow_links": True},
    ):
        assert load(with_value("model", {"version": "3", **good}))
    with pytest.raises(InvalidSpecError, match=rule):
        load(with_value("model", {"version": "3", **settings}))
