"""Starts llama.cpp's server with the model that the runtime has brought here and verified."""

import sys
from pathlib import Path

from llama_cpp.server.__main__ import main as serve

from mlimg.runtime.errors import ModelError
from mlimg.runtime.server import logs
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.settings import SERVER_DIR, usable_cpus

MAGIC = b"GGUF"


def main() -> None:
    """Serve until a signal comes."""
    folder, name, host, port = sys.argv[1:]
    try:
        run(find_model(Path(folder)), name, host, port)
    except ModelError as error:
        logs.leave(logs.complain(error))


def run(model: Path, name: str, host: str, port: str) -> None:
    """Serve `model`. Raises ModelError when llama.cpp cannot load it."""
    options = ServerFacts.load(Path(SERVER_DIR)).options
    threads = options["threads"] or usable_cpus()
    words = ["--model", model, "--verbose", False, "--model_alias", name, "--host", host, "--port", port]
    words += ["--n_ctx", options["context_tokens"], "--n_threads", threads, "--n_threads_batch", threads]
    words += ["--embedding", options["embedding"]]
    if options["chat_format"]:
        words += ["--chat_format", options["chat_format"]]
    sys.argv[1:] = map(str, words)
    try:
        serve()
    except ValueError as error:
        raise ModelError(f"{model.name} cannot be loaded: {logs.describe(error)}") from error


def find_model(folder: Path) -> Path:
    """The one model in `folder`; llama.cpp finds the other parts of one that is split. Raises ModelError."""
    files = [path for path in sorted(folder.rglob("*.gguf")) if "-of-" not in path.name or "-00001-of-" in path.name]
    if len(files) != 1:
        found = ", ".join(path.name for path in files[:5]) or "none"
        raise ModelError(f"expected one .gguf file, found {found}", hint="serve a folder with one")
    with files[0].open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ModelError(f"{files[0].name} is no GGUF file")
    return files[0]


if __name__ == "__main__":
    main()
