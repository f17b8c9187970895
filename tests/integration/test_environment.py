"""The servers that the other integration tests stand on."""

import json
import subprocess
import urllib.error
import urllib.request
import uuid

import pytest

from tests.support.engines import Engine


def test_engine_runs_python_from_the_base(engine: Engine, base_image: str) -> None:
    printed = engine.docker("run", "--rm", base_image, "python3", "-c", "import sys; print(*sys.version_info[:2])")
    assert printed == "3 13"


def test_engines_have_the_same_base(engine_host: str, containerd_engine: str, base_image: str) -> None:
    assert Engine.at(engine_host).diff_ids(base_image) == Engine.at(containerd_engine).diff_ids(base_image)


def test_fixture_names_the_store_the_engine_has(engine: Engine) -> None:
    assert Engine.at(engine.host) == engine


def test_image_pushed_by_an_engine_is_read_back_by_two_clients(engine: Engine, registry: str, base_image: str) -> None:
    target = f"{registry}/{uuid.uuid4().hex}:1"
    engine.docker("tag", base_image, target)
    try:
        engine.docker("push", "--quiet", target)
    finally:
        engine.docker("rmi", target)

    manifest = json.loads(_output("oras", "manifest", "fetch", "--plain-http", target))
    seen = json.loads(_output("skopeo", "inspect", "--tls-verify=false", f"docker://{target}"))
    assert seen["Layers"] == [layer["digest"] for layer in manifest["layers"]]


def test_registry_with_passwords_knows_alice(registry_auth: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        urllib.request.urlopen(f"http://{registry_auth}/v2/")
    refused.value.close()
    _output("oras", "repo", "ls", "--plain-http", "-u", "alice", "-p", "secret", registry_auth)  # exits 0


def _output(*command: str) -> str:
    done = subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.stdout.strip()
