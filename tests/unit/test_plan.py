from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from mlimg.files import ContextFile
from mlimg.plan import Material, Plan, Platform, resolve, server_inputs
from mlimg.record import local_store
from mlimg.runtime.errors import SpecError
from mlimg.runtime.reference import ImageReference
from mlimg.spec.schema import Pattern, Spec
from mlimg.template import builtin_templates

AMD64 = Platform("linux", "amd64")
SKLEARN = next(template for template in builtin_templates() if template.name == "sklearn")


def spec(**changes: Any) -> Spec:
    written: dict[str, Any] = {
        "image": "registry.example.com/serving/digits",
        "server": {"template": "sklearn"},
        "model": {"version": "3", "source": "./model"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            written.setdefault(section, {})[name] = value
        else:
            written[section] = value
    return Spec.model_validate(written, strict=False)


def material(**changes: Any) -> Material:
    return replace(
        Material(
            template=SKLEARN,
            options=SKLEARN.check_options({}),
            requirements=(),
            code=(),
            source="/project/model",
            framework="sklearn",
            format="skops",
        ),
        **changes,
    )


def plan(given: Spec, of: Material | None = None, origins: Mapping[str, str] | None = None) -> Plan:
    return resolve(
        given,
        of or material(),
        AMD64,
        pattern=Pattern.LOAD,
        local_store=local_store(Path("/project")),
        origins=origins or {},
    )


def test_names_and_versions_that_are_not_written_follow_from_those_that_are() -> None:
    planned = plan(spec())
    assert planned.model.name == "digits"
    assert planned.image == ImageReference.parse("registry.example.com/serving/digits:3")
    assert planned.server.image.repository == "serving/digits-server"
    assert planned.server.version == planned.server.inputs.hex[:12]
    assert planned.model.store == "/project/.mlimg/store"
    assert not planned.model.store_is_named


@pytest.mark.parametrize(
    "changed",
    [
        {"server__requirements": ("scikit-learn==1.7.2",)},
        {"server__env": {"OMP_NUM_THREADS": "2"}},
        {"server__base": "python:3.12-slim"},
    ],
)
def test_whatever_the_user_fixes_of_a_server_changes_its_inputs(changed: dict[str, Any]) -> None:
    given = spec(**changed)
    requirements = given.server.requirements
    assert isinstance(requirements, tuple)
    other = server_inputs(given, material(requirements=requirements), AMD64)
    assert other != server_inputs(spec(), material(), AMD64)


def test_server_code_its_modes_and_options_change_the_inputs() -> None:
    code = ContextFile(PurePosixPath("handler.py"), b"pass\n")
    executable = replace(code, mode=0o755)
    digests = {
        server_inputs(spec(), material(), AMD64),
        server_inputs(spec(), material(code=(code,)), AMD64),
        server_inputs(spec(), material(code=(executable,)), AMD64),
        server_inputs(spec(), material(options={"method": "predict_proba"}), AMD64),
        server_inputs(spec(), material(), Platform("linux", "arm64")),
    }
    assert len(digests) == 5


def test_of_the_store_counts_whether_it_is_an_object_store() -> None:
    registry = material(store="oci://registry.example.com/models")
    assert server_inputs(spec(), registry, AMD64) == server_inputs(spec(), material(), AMD64)
    assert not plan(spec(), registry).server.fetches_objects
    buckets = [material(store=store) for store in ("s3://bucket/models", "az://other/place")]
    assert plan(spec(), buckets[0]).server.fetches_objects
    first, second = (server_inputs(spec(), bucket, AMD64) for bucket in buckets)
    assert first == second
    assert first != server_inputs(spec(), material(), AMD64)


def test_model_index_and_secrets_leave_the_inputs_alone() -> None:
    same = spec(model__version="4", build={"index": "https://mirror.example.com/simple", "secrets": ("netrc",)})
    assert server_inputs(same, material(), AMD64) == server_inputs(spec(), material(), AMD64)


def test_versions_that_together_are_no_tag_are_refused() -> None:
    with pytest.raises(SpecError, match="together"):
        plan(spec(model__version="m" * 100, server__version="s" * 100))
    plan(spec(model__version="m" * 63, server__version="s" * 64))


def test_a_model_version_leaves_room_for_its_artifact() -> None:
    with pytest.raises(SpecError, match="-modelpack"):
        plan(spec(model__version="m" * 119, server__version="1"))
    plan(spec(model__version="m" * 118, server__version="1"))
    with pytest.raises(SpecError, match="ends with `-modelpack`"):
        plan(spec(model__version="3-modelpack"))
    plan(spec(model__version="3-modelpacks"))


def test_every_setting_has_its_value_and_says_where_that_came_from() -> None:
    written = {"image": "mlimg.yaml:1:8", "server.requirements": "--set", "server.env.A_B": "MLIMG_SET"}
    given = spec(server__requirements="requirements.txt", server__env={"A_B": "1"})
    planned = plan(given, material(requirements=("six>=1",)), origins=written)
    settings = {key: (setting.value, setting.origin) for key, setting in planned.settings.items()}
    assert settings["image"] == ("registry.example.com/serving/digits", "mlimg.yaml:1:8")
    assert settings["server.requirements"] == (["six>=1"], "--set")  # what the file says, not its name
    assert settings["server.env.A_B"] == ("1", "MLIMG_SET")
    assert settings["server.options.method"] == ("predict", "template sklearn")
    assert settings["server.base"] == (SKLEARN.base, "template sklearn")
    assert settings["server.version"] == (planned.server.version, "default")
    assert settings["model.name"] == ("digits", "default")


def test_the_index_of_a_package_is_a_setting_whoever_names_it() -> None:
    template = replace(SKLEARN, indexes={"torch": "https://template.test/cpu"})
    given = spec(build={"indexes": {"Foo_Bar.baz": "https://mirror.test/simple"}})
    settings = plan(given, material(template=template), {"build.indexes.Foo_Bar.baz": "mlimg.yaml:3:9"}).settings
    found = {key: (setting.value, setting.origin) for key, setting in settings.items() if "indexes" in key}
    assert found == {
        "build.indexes.foo-bar-baz": ("https://mirror.test/simple", "mlimg.yaml:3:9"),
        "build.indexes.torch": ("https://template.test/cpu", "template sklearn"),
    }
