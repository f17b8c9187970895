"""Renders a template that is not ours in a process of its own, where neither a loop nor a giant text can harm.

What it renders is the same; only time, memory and the reach of a mistake in the sandbox are bounded.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

from mlimg.dockerfile import write_dockerfile, write_file
from mlimg.runtime.errors import LimitError, MlimgError, TemplateError

CPU_SECONDS: Final = 3
TIMEOUT_SECONDS: Final = 20  # of waiting for it on a busy machine
MEMORY_BYTES: Final = 512 * 1024 * 1024
_CHILD: Final = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {__name__} import main; main()"
_ERRORS: Final[Mapping[str, type[MlimgError]]] = {"template": TemplateError, "limit": LimitError}


def write_confined(
    name: str, sources: Mapping[str, str], values: Mapping[str, object], *, of_dockerfile: bool = True
) -> str:
    """Do what `write_dockerfile` or `write_file` does. Raises the same, and LimitError for too much time or memory."""
    request = json.dumps([name, dict(sources), dict(values), of_dockerfile]).encode()
    # Isolated, so that neither the environment nor the current folder says what Python imports; but it imports what
    # this process does, wherever that is installed.
    command = [sys.executable, "-I", "-c", _CHILD, json.dumps(sys.path)]
    try:
        child = subprocess.run(
            command, input=request, capture_output=True, env={}, check=False, timeout=TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise _over(name) from error
    if child.returncode < 0 or b"MemoryError" in child.stderr:
        raise _over(name)
    child.check_returncode()
    answer = json.loads(child.stdout)
    if "text" in answer:
        return str(answer["text"])
    raise _ERRORS[answer["kind"]](answer["message"], hint=answer["hint"])


def _over(name: str) -> LimitError:
    return LimitError(
        f"{name}: rendering takes over {CPU_SECONDS} s or {MEMORY_BYTES // 2**20} MiB",
        hint="a template places values; what is computed belongs into a script that a RUN calls",
    )


def _answer(name: str, sources: Mapping[str, str], values: Mapping[str, object], of_dockerfile: bool) -> dict[str, Any]:
    write = write_dockerfile if of_dockerfile else write_file
    try:
        return {"text": write(name, sources, values)}
    except MlimgError as error:
        return {"kind": error.kind, "message": error.message, "hint": error.hint}


def main() -> None:
    """Answer the one request on standard input."""
    request = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform == "linux":  # elsewhere the address space holds more than what is used
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    json.dump(_answer(*request), sys.stdout)
