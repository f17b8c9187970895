"""A server on a base where nothing of ours runs, in real containers.

What MLServer, KServe's server and llama.cpp answer is in `test_examples`.
"""

import json
import subprocess
from pathlib import Path

import pytest
import urllib3

from tests.support.engines import Engine, environment
from tests.support.projects import MLIMG

# A server that knows nothing of mlimg: it serves the files under /models.
TEMPLATE = """\
name: files
version: "1"
description: a server of files
base: python:3.13-slim
options: {greeting: {default: "x"}}
rendered: [greeting.json]
fetches: false
command: [-m, http.server, "9000", --directory, /models]
health: {port: 9000, ready: /weights.txt}
"""
DOCKERFILE = """\
FROM {{ base | image }}
COPY image/ /
USER 10001:0
EXPOSE {{ port | word }}
ENTRYPOINT ["python3"]
CMD {{ command | exec_form }}
"""
SPEC = """\
image: mlimg.local/{name}
server: {{template: ./files, base: {base}, options: {{greeting: 'a "quoted" word'}}}}
model: {{version: "1", source: ./model}}
"""


@pytest.fixture
def project(tmp_path: Path, engine_host: str, base_image: str) -> Path:
    """A project whose server has no runtime of ours."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "template.yaml").write_text(TEMPLATE)
    (folder / "Dockerfile.j2").write_text(DOCKERFILE)
    (folder / "greeting.json.j2").write_text('{"greeting": {{ options.greeting | json }}}\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.txt").write_text("the weights")
    (tmp_path / "mlimg.yaml").write_text(SPEC.format(name=tmp_path.name.replace("_", "-"), base=base_image))
    return tmp_path


def mlimg(project: Path, host: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(MLIMG), *words], cwd=project, env=environment(host), capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("pattern", ["in-image", "load"])
def test_a_server_without_our_runtime_serves_the_model_in_it_or_mounted(
    project: Path, engine_host: str, pattern: str
) -> None:
    for command in ("check", "plan"):
        told = mlimg(project, engine_host, command, "--pattern", pattern)
        assert told.returncode == 0, told.stderr
        assert ("cannot fetch a model" in told.stderr) == (pattern == "load")
    built = mlimg(project, engine_host, "build", "--json", "--pattern", pattern)
    assert built.returncode == 0, built.stderr
    server = json.loads(built.stdout)["server"]["reference"]
    repository = server.partition(":")[0].removesuffix("-server")
    try:
        ran = mlimg(project, engine_host, "run", "--detach", "--port", "0", "--ready-timeout", "60", "--json")
        assert ran.returncode == 0, ran.stderr
        answer = urllib3.request("GET", f"{json.loads(ran.stdout)['url']}/weights.txt", timeout=10)
        assert (answer.status, answer.data) == (200, b"the weights")
        words = ["docker", "--host", engine_host, "run", "--rm", "--entrypoint", "sh", server]
        listed = subprocess.run(
            [*words, "-c", "ls /opt/mlimg; cat /opt/mlimg/greeting.json"], capture_output=True, text=True, check=True
        ).stdout
        assert listed.split("\n", 1)[0] == "greeting.json"
        assert json.loads(listed.split("\n", 1)[1]) == {"greeting": 'a "quoted" word'}
    finally:
        mlimg(project, engine_host, "run", "--stop")
        engine = Engine.at(engine_host)
        if images := set(engine.docker("image", "ls", "--quiet", "--filter", f"reference={repository}*").split()):
            engine.docker("image", "rm", "--force", *images)
