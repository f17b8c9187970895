"""What the server image of each built-in template weighs, with the template's defaults."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from mlimg.template import Template, builtin_templates
from tests.support.engines import Engine, environment, tool
from tests.support.projects import HANDLER, MLIMG
from tests.support.torch_index import TorchBuilds

SLIM = re.compile(r"python:(3\.\d+)-slim")
# Bases of vendors cannot be had everywhere, and weigh what they weigh.
TEMPLATES = {template.name: template for template in builtin_templates() if SLIM.fullmatch(template.base)}
SPEC = """\
image: {image}
server:
  template: {template}
{code}model:
  version: "1"
  source: ./model
"""
MLFLOW = "mlflow_version: 3.1.0\nflavors: {python_function: {loader_module: mlflow.sklearn}}\n"


def needs_torch(template: Template) -> bool:
    """Whether its server has PyTorch."""
    return any(re.match(r"torch\b", line) for line in template.requirements)


# llama.cpp takes minutes to compile.
TRIED = [pytest.param(name, marks=pytest.mark.extensive) if name == "gguf" else name for name in TEMPLATES]


@pytest.mark.parametrize("name", TRIED)
def test_a_server_is_within_the_budget_of_its_template(
    name: str, tmp_path: Path, engine_host: str, request: pytest.FixtureRequest
) -> None:
    template = TEMPLATES[name]
    assert template.size_mib, "template.yaml has no size_mib"
    torch = request.getfixturevalue("torch_builds") if needs_torch(template) else None
    python = torch.python if torch and torch.python else SLIM.sub(r"\1", template.base)
    base = tool("base-image.sh", "--python", python, host=engine_host)
    engine = Engine.at(engine_host)
    image = f"mlimg.local/size-{name}"
    try:
        server = build_server(write(tmp_path, template, image), engine_host, base, torch)
        size_bytes = int(engine.docker("image", "inspect", "--format", "{{.Size}}", server))
    finally:
        references = engine.docker("image", "ls", "--quiet", f"{image}-server").split()
        if references:
            engine.docker("image", "rm", "--force", *set(references))
    assert size_bytes / 2**20 <= template.size_mib
    # A budget that is much too large holds nothing.
    assert size_bytes / 2**20 > template.size_mib * 0.7


def write(folder: Path, template: Template, image: str) -> Path:
    """A project that asks for the template and for nothing else."""
    (folder / "model").mkdir()
    if template.model_requirements:
        (folder / "model" / "MLmodel").write_text(MLFLOW)
        (folder / "model" / template.model_requirements.file).write_text("")
    own_handler = template.name == "python"
    if own_handler:
        (folder / "serve").mkdir()
        (folder / "serve" / "handler.py").write_text(HANDLER)
    code = "  code: ./serve\n" if own_handler else ""
    (folder / "mlimg.yaml").write_text(SPEC.format(image=image, template=template.name, code=code))
    return folder


def build_server(project: Path, host: str, base: str, torch: TorchBuilds | None) -> str:
    """The reference of a server image, built alone."""
    words = [str(MLIMG), "build", "--only", "server", "--json", "--set", f"server.base={base}"]
    done = subprocess.run(
        [*words, *(torch.settings if torch else ())],
        cwd=project,
        env={**environment(host), **(torch.environ if torch else {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reference: str = json.loads(done.stdout)["server"]["reference"]
    return reference
