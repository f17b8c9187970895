"""One image on every platform: started as that platform starts it, and called as it calls."""

import http.client
import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from tests.support.engines import Engine
from tests.support.lambda_api import lambda_api
from tests.support.projects import Project
from tests.support.servers import Reply, rows

LOCKED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
CSV = {"Content-Type": "text/csv"}
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Digits:
    """The images, three handwritten digits, and what the estimator itself says they are."""

    engine: Engine
    image: str
    server: str
    model: Path
    images: list[list[float]]
    labels: list[int]


@pytest.fixture(scope="module")
def digits(
    engine_host: str, base_image: str, tmp_path_factory: pytest.TempPathFactory, user_cache: Path
) -> Iterator[Digits]:
    folder = tmp_path_factory.mktemp("platforms")
    data, target = load_digits(return_X_y=True)
    estimator = LogisticRegression(max_iter=50, tol=1).fit(data, target)
    with Project(folder / "project", Engine.at(engine_host), base_image, user_cache) as project:
        for file in (project.folder / "model").iterdir():
            file.unlink()
        joblib.dump(estimator, project.folder / "model" / "model.joblib")
        del project.spec["server"]["code"]
        project.set(image=f"{project.prefix}/digits", server__template="sklearn", model__allow_pickle=True)
        project.set(server__requirements=["scikit-learn==1.7.2"])
        done = project.build("in-image")
        assert done.status == 0, done.stderr
        image = f"{project.prefix}/digits:1"
        # What a platform mounts is what is published: the files with their manifest.
        made = project.engine.docker("create", image)
        project.engine.docker("cp", f"{made}:/models", str(folder / "published"))
        project.engine.docker("rm", made)
        asked = data[:3].tolist()
        server = f"{project.prefix}/server:1.0"
        yield Digits(project.engine, image, server, folder / "published", asked, estimator.predict(asked).tolist())


@dataclass(frozen=True)
class Container:
    """A running container; `ask` fails for what does not answer in time."""

    engine: Engine
    id: str
    port: int

    def ask(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] = JSON, seconds: float = 60
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request("GET" if body is None else "POST", path, body, {} if body is None else dict(headers))
            response = connection.getresponse()
            told = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, told, response.read())
        finally:
            connection.close()

    def wait(self, path: str, seconds: float = 60) -> set[int]:
        """Probe until 200, as platforms do; the statuses until then. What says nothing in `seconds` is probed anew."""
        found: set[int] = set()
        deadline = time.monotonic() + 60
        while 200 not in found:
            assert time.monotonic() < deadline, self.logs()
            try:
                found.add(self.ask(path, seconds=seconds).status)
            except (OSError, http.client.HTTPException):  # the container, or the engine's proxy, begins
                assert self.inspect("{{.State.Running}}") == "true", self.logs()
            time.sleep(0.05)
        return found

    def inspect(self, form: str) -> str:
        return self.engine.docker("inspect", "--format", form, self.id)

    def stop(self, seconds: int) -> int:
        """The exit status; 137 for one that had to be killed after `seconds`."""
        self.engine.docker("stop", "--time", str(seconds), self.id)
        return int(self.inspect("{{.State.ExitCode}}"))

    def logs(self) -> str:
        command = ["docker", "logs", self.id]
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.run(command, env=self.engine.env, text=True, check=True, **streams).stdout


@contextmanager
def container(
    digits: Digits, image: str, port: int, *options: str, command: tuple[str, ...] = ()
) -> Iterator[Container]:
    published = ("--publish", f"127.0.0.1::{port}") if port else ("--network", "host")
    name = digits.engine.docker("run", "--detach", *published, *options, image, *command)
    try:
        told = digits.engine.docker("port", name, f"{port}/tcp") if port else ":0"
        yield Container(digits.engine, name, int(told.splitlines()[0].rpartition(":")[2]))
    finally:
        digits.engine.docker("rm", "--force", "--volumes", name)


def env(**variables: str) -> list[str]:
    return [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]


def instances(digits: Digits) -> bytes:
    return json.dumps({"instances": digits.images}).encode()


def test_sagemaker(digits: Digits) -> None:
    """`docker run IMAGE serve`, the model at /opt/ml/model, a ping that answers in 2 s, SIGKILL after 30 s."""
    options = (*env(SAGEMAKER_BIND_TO_PORT="8765"), "--volume", f"{digits.model}:/opt/ml/model:ro")
    with container(digits, digits.server, 8765, *options, command=("serve",)) as served:
        assert served.wait("/ping", seconds=2) <= {200, 503}
        assert served.ask("/ping", None, seconds=2).status == 200
        for body in (instances(digits), json.dumps(digits.images).encode()):
            assert served.ask("/invocations", body).json == {"predictions": digits.labels}
        answer = served.ask("/invocations", json.dumps(rows(digits.images)).encode()).json
        assert answer["outputs"][0]["data"] == digits.labels
        text = "\n".join(",".join(map(str, row)) for row in digits.images).encode()
        answered = served.ask("/invocations", text, {**CSV, "Accept": "text/csv"})
        assert answered.headers["content-type"] == "text/csv"
        assert [int(line) for line in answered.body.split()] == digits.labels
        assert served.stop(30) == 0


def test_vertex_ai(digits: Digits) -> None:
    """Port and routes are the platform's; the probe needs an open port within 40 s."""
    route = "/v1/endpoints/1234/deployedModels/5678"
    variables = env(
        AIP_HTTP_PORT="8085", AIP_HEALTH_ROUTE=route, AIP_PREDICT_ROUTE=f"{route}:predict", AIP_STORAGE_URI=""
    )
    with container(digits, digits.image, 8085, *variables) as served:
        served.wait(route, seconds=10)
        body = json.dumps({"instances": digits.images, "parameters": {"anything": 1}}).encode()
        assert served.ask(f"{route}:predict", body).json == {"predictions": digits.labels}
        assert served.ask("/v1/models/digits", None).status == 200
        assert served.stop(10) == 0


def test_cloud_run(digits: Digits) -> None:
    """The port is PORT, the start-up probe is ours, SIGKILL follows SIGTERM after 10 s."""
    variables = env(PORT="9090", K_SERVICE="digits", K_REVISION="digits-1", MLIMG_GRACE_SECONDS="8")
    with container(digits, digits.image, 9090, *variables) as served:
        served.wait("/v2/health/ready")
        answer = served.ask("/v2/models/digits/infer", json.dumps(rows(digits.images)).encode()).json
        assert answer["outputs"][0]["data"] == digits.labels
        assert served.stop(10) == 0


def test_azure_ml(digits: Digits) -> None:
    """A registered folder lies below AZUREML_MODEL_DIR; the three routes are those of `inference_config`."""
    folder = "/var/azureml-app/azureml-models/digits/1"
    options = (*env(AZUREML_MODEL_DIR=folder), "--volume", f"{digits.model}:{folder}/model:ro")
    with container(digits, digits.server, 8080, *options) as served:
        assert served.wait("/v2/health/live") == {200}
        served.wait("/v2/health/ready")
        assert served.ask("/score", instances(digits)).json == {"predictions": digits.labels}


def test_kserve_v1(digits: Digits) -> None:
    """A custom predictor: the model at /mnt/models, an arbitrary user, nothing else to write to."""
    options = (*LOCKED, "--user", "1000720000:0", "--volume", f"{digits.model}:/mnt/models:ro")
    with container(digits, digits.server, 8080, *options) as served:
        served.wait("/v1/models/digits")
        assert served.ask("/v1/models").json == {"models": ["digits"]}
        assert served.ask("/v1/models/digits:predict", instances(digits)).json == {"predictions": digits.labels}


def test_aws_lambda(digits: Digits) -> None:
    """A user of Lambda's, a read-only root but for /tmp, and the runtime API, here a small one of its documentation."""
    with lambda_api() as api:
        options = (*LOCKED, "--user", "993:990", "--tmpfs", "/tmp:mode=1777", *env(PORT="0"))
        started = (*options, *env(AWS_LAMBDA_RUNTIME_API=api.address))
        with container(digits, digits.image, 0, *started) as served:
            answer = api.fetch("/v1/models/digits:predict", instances(digits).decode())
            assert json.loads(answer["body"]) == {"predictions": digits.labels}, served.logs()
            assert api.invoke({"instances": digits.images}) == ("response", {"predictions": digits.labels})
            assert served.stop(10) == 0
