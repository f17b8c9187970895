"""Settings over the spec: MLIMG_SET wins over the file, --set over both; values are text, typed by the schema."""

import pytest

from mlimg.runtime.errors import LimitError
from mlimg.spec.problems import Code, InvalidSpecError
from mlimg.spec.schema import Pattern, keys

from .conftest import SMALLEST, Load, attempt, value_of


def test_the_later_layer_wins_and_origins_say_so(load: Load) -> None:
    text = SMALLEST.replace("sklearn", 'sklearn\n  version: "1"\n  base: python:3.11\n  image: a/b')
    loaded = load(
        text, "server.version=3", environment="server.version=2\nserver.base=python:3.12\n\nmodel.name=digits\n"
    )
    assert (loaded.spec.server.version, loaded.spec.server.base, loaded.spec.server.image) == (
        "3",
        "python:3.12",
        "a/b",
    )
    assert loaded.origins["server.version"] == "--set"
    assert loaded.origins["server.base"] == "MLIMG_SET"
    assert loaded.origins["model.name"] == "MLIMG_SET"
    assert loaded.origins["server.image"] == "mlimg.yaml:6:10"


def test_of_two_settings_for_one_key_the_later_wins(load: Load) -> None:
    assert load(SMALLEST, "model.version=4", "model.version=5").spec.model.version == "5"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("pattern=load", Pattern.LOAD),
        ("model.version=1.10", "1.10"),
        ("model.version=007", "007"),
        ("server.version=no", "no"),
        ("server.env.OMP_NUM_THREADS=2", "2"),
        ("server.env.EMPTY=", ""),
        ("server.env.EQUALS=a=b", "a=b"),
        ("server.options.method=predict_proba", "predict_proba"),
        ("server.options.threads=4", "4"),
        ("model.allow_pickle=true", True),
        ("model.follow_links=false", False),
        ("server.requirements=numpy>=1.26,<3", ("numpy>=1.26,<3",)),
        ("server.requirements=[pandas, 'numpy>=1.26,<3']", ("pandas", "numpy>=1.26,<3")),
        ('server.requirements=["uvicorn[standard]"]', ("uvicorn[standard]",)),
        ("server.requirements=requirements.txt", "requirements.txt"),
        ("server.requirements=", ()),
        ("server.requirements=[]", ()),
        ("build.secrets=[netrc, token]", ("netrc", "token")),
        ("build.insecure_registries=registry.lab:5000", ("registry.lab:5000",)),
        ("build.insecure_registries=[registry.lab:5000, localhost:1]", ("registry.lab:5000", "localhost:1")),
        (" server.version =1", "1"),
    ],
)
def test_text_is_typed_by_the_schema(load: Load, setting: str, value: object) -> None:
    key = setting.partition("=")[0].strip()
    assert value_of(load(SMALLEST, setting), key) == value
    assert value_of(load(SMALLEST, environment=f"{setting}\n"), key) == value


def test_every_key_can_be_set(load: Load) -> None:
    for key in keys():
        name = f"{key.name}.x" if key.name in {"server.options", "server.env"} else key.name
        outcome = attempt(load, SMALLEST, f"{name}=1")
        codes = {problem.code for problem in outcome.problems} if isinstance(outcome, InvalidSpecError) else set()
        assert codes <= {Code.VALUE, Code.TYPE}, outcome


def test_a_setting_mends_a_spec_that_is_wrong_or_lacks_a_key(load: Load) -> None:
    assert load(SMALLEST.replace('"3"', "1.10"), "model.version=1.10").spec.model.version == "1.10"
    assert load(SMALLEST.replace('version: "3"', "name: digits"), "model.version=3").spec.model.version == "3"
    assert load("image: a/b\n", "server.template=x", "model.version=1", "model.source=m").spec.server.template == "x"


def test_a_setting_replaces_a_value_whole(load: Load) -> None:
    text = SMALLEST.replace("sklearn", "sklearn\n  requirements: [a, 1.10]\n  env: {A: '1', B: '2'}")
    loaded = load(text, "server.requirements=c", "server.env.B=3")
    assert loaded.spec.server.requirements == ("c",)
    assert loaded.spec.server.env == {"A": "1", "B": "3"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("server.verzion=1", "--set: server.verzion: unknown key; did you mean `server.version`?"),
        ("allow_pickle=true", "--set: allow_pickle: unknown key; did you mean `model.allow_pickle`?"),
        ("xyzzy=1", "--set: xyzzy: unknown key"),
        ("server.image.tag=1", "--set: server.image.tag: unknown key; did you mean `server.image`?"),
        ("server=x", "--set: server: is set by its keys: server.template, "),
        ("server.env={A: 1}", "--set: server.env: is set one at a time: server.env.NAME=value"),
        ("server.env.1A=x", "--set: server.env.1A: `1A` cannot name a variable"),
        ("server.version", "--set: `server.version` is not key=value"),
        ("=1", "--set: the key is missing"),
        ("model.allow_pickle=yes", "--set: model.allow_pickle: expected true or false, not `yes`"),
        ("pattern=image", "--set: pattern: expected `in-image` or `load`, not `image`"),
        ("build.secrets=a,b", "--set: build.secrets[0]: `a,b` cannot name a secret"),
        ("build.secrets=[a", "--set: build.secrets: `[a` is not a list such as [a, b]"),
        ("build.secrets=[a, [b]]", "--set: build.secrets: `[a, [b]]` holds more than texts"),
        ("build.secrets=[*a]", "--set: build.secrets: `[*a]` is not a list"),
        ("build.index=http://x", "--set: build.index: packages come over https"),
    ],
)
def test_a_wrong_setting_is_told_with_its_layer(load: Load, setting: str, message: str) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        load(SMALLEST, setting)
    assert caught.value.status == 10
    assert str(caught.value).startswith(message)
    with pytest.raises(InvalidSpecError) as caught:
        load(SMALLEST, environment=setting)
    assert str(caught.value).startswith(message.replace("--set", "MLIMG_SET"))


def test_a_line_of_the_environment_ends_at_a_newline_alone(load: Load) -> None:
    """A9: U+2028 and the like end no line, so nothing after them becomes a setting of its own."""
    for character in ("\u2028", "\x85", "\v", "\r", "\x1c"):
        with pytest.raises(InvalidSpecError):
            load(SMALLEST, environment=f"server.version=1{character}model.name=other")


def test_a_bomb_in_a_list_is_over_a_limit(load: Load) -> None:
    """A5, by --set."""
    with pytest.raises(LimitError, match="nested deeper"):
        load(SMALLEST, "build.secrets=" + "[" * 20_000)


def test_settings_cannot_reach_into_what_is_no_section(load: Load) -> None:
    with pytest.raises(InvalidSpecError, match="server: expected keys and values, not `sklearn`"):
        load(SMALLEST.replace("server:\n  template: sklearn", "server: sklearn"), "server.version=1")
    with pytest.raises(InvalidSpecError, match="expected keys and values"):
        load("- a\n", "server.version=1")
