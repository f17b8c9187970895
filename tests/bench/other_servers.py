"""Images that MLServer, BentoML and MLflow make of one scikit-learn model, by their own recipes where they can be had.

BentoML's and MLflow's Dockerfiles are built as the tools write them; both begin with a slim Python image. MLServer's
begins with images of its vendor's: its packages alone are installed on the same slim base instead, which makes less of
it. The base has pip, as the public one has it, and the certificates of this machine.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

from project import ROOT

UV = [str(ROOT / ".venv" / "bin" / "uv"), "run", "--quiet", "--no-project", "--python", "3.11"]
SKLEARN = "scikit-learn==1.7.2"
PREFIX = "mlimg.local/bench"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
SERVICE = """\
import bentoml
import joblib
import numpy as np


@bentoml.service
class Digits:
    def __init__(self) -> None:
        self.model = joblib.load("model.joblib")

    @bentoml.api
    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.model.predict_proba(rows)
"""
BENTO = f"""\
service: "service:Digits"
include: [service.py, model.joblib]
python: {{packages: [{SKLEARN}]}}
docker: {{python_version: "3.11"}}
"""
MLSERVER = """\
FROM {base}
COPY requirements.txt /tmp/
RUN pip install --no-cache-dir --root-user-action=ignore mlserver mlserver-sklearn -r /tmp/requirements.txt
WORKDIR /opt/mlserver
COPY model-settings.json model.joblib ./
CMD ["mlserver", "start", "."]
"""
PIP_BASE = f"""\
FROM {{base}}
COPY pip-*.whl /tmp/
COPY ca.crt {CERTIFICATES}
ENV PIP_CERT={CERTIFICATES} SSL_CERT_FILE={CERTIFICATES} REQUESTS_CA_BUNDLE={CERTIFICATES}
RUN rm -f /usr/lib/python3*/EXTERNALLY-MANAGED && W=$(echo /tmp/pip-*.whl) && \
python3 $W/pip install --quiet --no-cache-dir --root-user-action=ignore /tmp/pip-*.whl && rm /tmp/pip-*.whl && \
pip --version
"""
LOG = """\
import sys

import joblib
import mlflow.sklearn

mlflow.sklearn.save_model(joblib.load(sys.argv[1]), sys.argv[2], serialization_format="cloudpickle")
"""


def pip_base(base: str, folder: Path) -> str:
    """The base, with pip."""
    folder.mkdir()
    download = ["python", "-m", "pip", "download", "--quiet", "--no-deps", "--dest", "."]
    _call([*UV, "--with", "pip", *download, "pip"], folder)
    shutil.copy(CERTIFICATES, folder / "ca.crt")
    (folder / "Dockerfile").write_text(PIP_BASE.format(base=base))
    return _build("base", folder, {})


def mlserver(model: Path, base: str, folder: Path) -> str:
    """MLServer and its runtime for scikit-learn, by pip."""
    folder.mkdir()
    shutil.copy(model, folder / "model.joblib")
    settings = {"name": "digits", "implementation": "mlserver_sklearn.SKLearnModel"}
    settings |= {"parameters": {"uri": "./model.joblib", "version": "1"}}
    (folder / "model-settings.json").write_text(json.dumps(settings))
    (folder / "requirements.txt").write_text(f"{SKLEARN}\n")
    (folder / "Dockerfile").write_text(MLSERVER.format(base=base))
    return _build("mlserver", folder, {})


def bentoml(model: Path, base: str, folder: Path) -> str:
    """What `bentoml build` and `bentoml containerize` make."""
    folder.mkdir()
    shutil.copy(model, folder / "model.joblib")
    (folder / "service.py").write_text(SERVICE)
    (folder / "bentofile.yaml").write_text(BENTO)
    words = [*UV, "--with", "bentoml", "--with", "pip", "--with", "uv", "--with", SKLEARN, "bentoml", "build"]
    _call(words, folder, BENTOML_HOME=str(folder / "home"), BENTOML_DO_NOT_TRACK="True")
    (bento,) = (folder / "home" / "bentos").glob("*/*/bento.yaml")
    return _build("bentoml", bento.parent, {"python:3.11-slim": base}, "env/docker/Dockerfile")


def mlflow(model: Path, base: str, folder: Path) -> str:
    """What `mlflow models build-docker` makes of the logged model."""
    folder.mkdir()
    (folder / "log.py").write_text(LOG)
    words = [*UV, "--with", "mlflow==3.17.2", "--with", SKLEARN]
    _call([*words, "python", "log.py", str(model), "model"], folder, MLFLOW_DISABLE_TELEMETRY="true")
    generate = ["mlflow", "models", "generate-dockerfile", "--model-uri", "model", "--output-directory", "image"]
    _call([*words, *generate], folder, MLFLOW_DISABLE_TELEMETRY="true")
    written = (folder / "image" / "Dockerfile").read_text().splitlines()
    public = next(line.removeprefix("FROM ") for line in written if line.startswith("FROM "))
    return _build("mlflow", folder / "image", {public: base})


def _build(name: str, context: Path, bases: dict[str, str], dockerfile: str = "Dockerfile") -> str:
    """Build an image; the public `bases` of its Dockerfile are these here."""
    image = f"{PREFIX}-{name}"
    mapped = [f"--build-context={public}=docker-image://{ours}" for public, ours in bases.items()]
    _call(["docker", "buildx", "build", "--load", "--tag", image, "--file", dockerfile, *mapped, "."], context)
    return image


def _call(words: list[str], folder: Path, **environ: str) -> None:
    done = subprocess.run(words, cwd=folder, env={**os.environ, **environ}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} exited with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
