"""Images that MLServer, BentoML and MLflow make of one scikit-learn model, by their own recipes where they can be had.

BentoML's and MLflow's Dockerfiles are built as the tools write them; both begin with a slim Python image. The base has
pip, as the public one has it, and the certificates of this machine.

MLServer's Dockerfile (SeldonIO/MLServer, 1.7) begins with Red Hat's UBI 9 and installs a Conda, which a machine may not
reach: `mlserver` takes its steps on the same slim base, with Debian's packages where it names Red Hat's. It errs so:

* Less than theirs: the slim base's Python instead of a whole Conda; package lists and archives are removed, theirs
  stay; no git, which a newer version of the Dockerfile installs.
* More than theirs: Debian's libgl1 always brings Mesa's drivers and with them LLVM (160 MiB); Red Hat's mesa-libGL
  needs them from Mesa 25 on, and only recommended them before.
* Either: the base and FFmpeg are Debian's; the wheels are the newest of the day that 1.7.1 was released, for Python
  3.11, not those of its lock for Python 3.10, and scikit-learn is the model's.

What is less weighs more: of MLServer 1.3.5, by a Dockerfile of the same steps, the image without any runtime is said to
have almost 900 MB when compressed (opendatahub-io/ai-edge#95), that for scikit-learn 0.93 GB
(validatedpatterns/industrial-edge#343). The image here has 0.38 GB when compressed.
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
APT = "apt-get update && apt-get install --yes --no-install-recommends"
CLEAN = "rm -rf /var/lib/apt/lists/* /var/cache/apt/*"
PIP = "pip install --no-cache-dir --root-user-action=ignore"
# Of the day of its release: 1.7.1 does not start with the newest uvloop.
MLSERVER_WHEELS = f"{PIP} --uploaded-prior-to 2025-06-07 mlserver-sklearn==1.7.1 mlserver==1.7.1 && {PIP} {SKLEARN}"
MLSERVER_MODEL = """\
WORKDIR /opt/mlserver
COPY model-settings.json model.joblib ./
CMD ["mlserver", "start", "."]
"""
MLSERVER_PACKAGES = f"""\
FROM {{base}}
RUN {MLSERVER_WHEELS}
{MLSERVER_MODEL}"""
MLSERVER = f"""\
FROM {{base}}
RUN {APT} tar gzip passwd libgomp1 && {CLEAN}
RUN {APT} libgl1 && {CLEAN}
RUN {APT} libglib2.0-dev && {CLEAN}
RUN {APT} ffmpeg && {CLEAN}
RUN useradd --uid 1000 --create-home --home-dir /opt/mlserver --shell /bin/bash mlserver && chmod 776 /opt/mlserver
RUN {PIP} --upgrade pip wheel setuptools && {MLSERVER_WHEELS}
USER 1000
{MLSERVER_MODEL}"""
PIP_BASE = f"""\
FROM {{base}}
COPY ca.crt {CERTIFICATES}
ENV PIP_CERT={CERTIFICATES} SSL_CERT_FILE={CERTIFICATES} REQUESTS_CA_BUNDLE={CERTIFICATES}
RUN --mount=type=bind,target=/context rm -f /usr/lib/python3*/EXTERNALLY-MANAGED && \
W=$(echo /context/pip-*.whl) && python3 $W/{PIP} --quiet $W && pip --version
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


def mlserver_packages(model: Path, base: str, folder: Path) -> str:
    """MLServer and its runtime for scikit-learn, by pip, and nothing else of its image."""
    return _mlserver("mlserver-packages", MLSERVER_PACKAGES, model, base, folder)


def mlserver(model: Path, base: str, folder: Path) -> str:
    """The steps of MLServer's Dockerfile for its runtime for scikit-learn."""
    return _mlserver("mlserver", MLSERVER, model, base, folder)


def _mlserver(name: str, dockerfile: str, model: Path, base: str, folder: Path) -> str:
    folder.mkdir()
    shutil.copy(model, folder / "model.joblib")
    settings = {"name": "digits", "implementation": "mlserver_sklearn.SKLearnModel"}
    settings |= {"parameters": {"uri": "./model.joblib", "version": "1"}}
    (folder / "model-settings.json").write_text(json.dumps(settings))
    (folder / "Dockerfile").write_text(dockerfile.format(base=base))
    return _build(name, folder, {})


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
