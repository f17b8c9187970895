"""Lays out the model repository that Triton expects, without copying the model, and becomes Triton."""

import json
import os
import sys
import tempfile
from pathlib import Path

from mlimg.runtime.errors import ModelError
from mlimg.runtime.server import logs

CONFIG = Path("/opt/mlimg/config.pbtxt")


def main() -> None:
    """Become Triton."""
    folder, name, host, port = sys.argv[1:]
    repository = Path(tempfile.mkdtemp(prefix="repository-"))
    try:
        lay_out(repository / name, Path(folder), CONFIG.read_text())
    except ModelError as error:
        logs.leave(logs.complain(error))
    words = [f"--model-repository={repository}", f"--http-address={host}", f"--http-port={port}"]
    # Triton would put rows together where the configuration says 0: to it that is not written.
    words += ["--backend-config=default-max-batch-size=0"]
    os.execvp("tritonserver", ["tritonserver", *words])  # noqa: S606 (no shell is wanted)


def lay_out(target: Path, model: Path, config: str) -> None:
    """Make `target`: the configuration, which learns the file's name, and version 1, a link to `model`.

    Raises ModelError unless the folder has one ONNX file.
    """
    files = sorted(model.glob("*.onnx"))
    if len(files) != 1:
        found = ", ".join(path.name for path in files[:5]) or "none"
        raise ModelError(f"expected one .onnx file, found {found}", hint="serve a folder with one")
    target.mkdir(parents=True)
    (target / "1").symlink_to(model.resolve())
    # A text of JSON is one of protobuf's text format.
    named = f"default_model_filename: {json.dumps(files[0].name, ensure_ascii=False)}\n"
    (target / "config.pbtxt").write_text(config + named, encoding="utf-8")


if __name__ == "__main__":
    main()
