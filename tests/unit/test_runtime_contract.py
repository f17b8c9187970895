"""docs/runtime-contract.md names all that the runtime reads and ends with, and its Deployments are Deployments."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import mlimg
from mlimg.runtime import __main__ as commands
from mlimg.runtime.errors import MlimgError
from mlimg.runtime.server.state import Phase

ROOT = Path(mlimg.__file__).parent
CONTRACT = (ROOT.parent / "docs" / "runtime-contract.md").read_text(encoding="utf-8")
PATTERNS = ("in-image", "load")
DEPLOYMENTS: dict[str, Any] = dict(
    zip(PATTERNS, map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", CONTRACT, re.DOTALL)), strict=True)
)
KUBERNETES = "1.34"


def validate(deployment: Any) -> None:
    kubernetes_validate.validate(deployment, KUBERNETES, strict=True)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_pattern_has_a_deployment_of_the_schema(pattern: str) -> None:
    validate(DEPLOYMENTS[pattern])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_deployment_with_one_key_misspelt_is_not_of_the_schema(pattern: str) -> None:
    wrong = deepcopy(DEPLOYMENTS[pattern])
    container = wrong["spec"]["template"]["spec"]["containers"][0]
    container["readinessprobe"] = container.pop("readinessProbe")
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(wrong)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_deployment_probes_what_the_server_answers_and_locks_it_down(pattern: str) -> None:
    pod = DEPLOYMENTS[pattern]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert f"`GET {container[probe]['httpGet']['path']}`" in CONTRACT.replace("live`, `/", "live`, `GET /")
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert pod["terminationGracePeriodSeconds"] > 30 + container["lifecycle"]["preStop"]["sleep"]["seconds"]


def test_the_load_pattern_pins_its_model() -> None:
    (container,) = DEPLOYMENTS["load"]["spec"]["template"]["spec"]["containers"]
    assert "@sha256:" in container["env"][0]["value"]


def test_every_variable_that_the_runtime_reads_is_in_the_contract() -> None:
    read = {
        name
        for path in (ROOT / "runtime").rglob("*.py")
        for name in re.findall(r"\"(MLIMG_[A-Z_]+|HOST|PORT|LOG_LEVEL)\"", path.read_text(encoding="utf-8"))
    }
    assert len(read) > 15, "a walk that finds nothing is broken"
    assert not {name for name in read if f"`{name}`" not in CONTRACT}


def test_every_variable_of_the_contract_is_read() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "runtime").rglob("*.py"))
    assert not {name for name in re.findall(r"`(MLIMG_[A-Z_]+)`", CONTRACT) if f'"{name}"' not in source}


def test_every_command_phase_and_status_is_in_the_contract() -> None:
    statuses = {str(error.status) for error in [MlimgError, *MlimgError.__subclasses__()]}
    table = CONTRACT.partition("## Exit statuses")[2].partition("##")[0]
    assert not {status for status in statuses if not re.search(rf"\b{status}\b", table)}
    assert not {phase for phase in Phase if phase is not Phase.READY and f"`{phase}`" not in CONTRACT}
    assert not {word for word in re.findall(r"runtime (\w+)", commands.USAGE) if f"| `{word}" not in CONTRACT}
