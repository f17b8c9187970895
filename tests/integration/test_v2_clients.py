"""The protocol as its own clients speak it: tritonclient against a server process."""

import subprocess
import sys
from pathlib import Path

from mlimg.runtime.digest import Digest
from mlimg.runtime.manifest import MANIFEST_NAME, ModelFile, ModelManifest, model_path
from tests.support.servers import ROOT, running, server_folder

# It gives back what it gets, and a sample of what it does not get, since each declared output is to be there.
HANDLER = """
from mlimg.runtime.server.tensors import DTYPES, TensorSpec
def load(model_dir, options):
    return {datatype: TensorSpec(datatype, datatype, (1, 2)).sample() for datatype in DTYPES}
def predict(model, inputs):
    return {**model, **inputs}
def signature(model):
    tensors = [{"name": datatype, "datatype": datatype, "shape": [-1, 2]} for datatype in model]
    return [{**tensor, "parameters": {"required": False}} for tensor in tensors], tensors
"""
UV = [str(Path(sys.executable).with_name("uv")), "run", "--quiet", "--no-project", "--python", sys.executable]
CLIENT = ["--with", "tritonclient[http]==2.73.0", "--with", "numpy"]


def test_tritonclient_gets_back_what_it_sends(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"1")
    files = (ModelFile(model_path("weights"), 1, Digest.of_file(folder / "weights")),)
    (folder / MANIFEST_NAME).write_bytes(ModelManifest("echo", "3", "custom", "custom", files).to_bytes())
    server = server_folder(tmp_path / "server", HANDLER)
    with running({"MLIMG_MODEL_DIR": str(folder), "MLIMG_SERVER_DIR": str(server)}) as serving:
        serving.wait_until(200)
        script = str(ROOT / "tests" / "support" / "triton_http.py")
        words = [*UV, *CLIENT, script, f"127.0.0.1:{serving.port}"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
