"""`exec` and `fetch`: bring a model here without serving it, for servers that are not ours."""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Final, NoReturn

from mlimg.runtime import init
from mlimg.runtime.prepare import PreparedModel, prepare
from mlimg.runtime.progress import Progress
from mlimg.runtime.server import logs
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.settings import server_dir
from mlimg.runtime.variables import DEFAULT_HOST, listen_port, words

_STOP_SECONDS: Final = 1.0  # for a fetch to put away what it has
# What a fetch authenticates with. Whole families, since a new member would otherwise slip through.
_CREDENTIAL_PREFIXES: Final = ("AWS_", "AZURE_", "GOOGLE_", "DOCKER_", "REGISTRY_AUTH_")
_CREDENTIALS: Final = frozenset({"NETRC", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})
_KEEP: Final = "MLIMG_KEEP_ENV"


def execute(command: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Prepare the model, then become `command` with no fetch credentials in its environment."""
    prepared = _until_signal(partial(_prepare, environ))
    child = child_environment(environ, prepared)
    command = child_command(command, prepared, child)
    if os.getpid() == 1:
        # By exec, not by fork alone: /proc/1/environ would go on showing what process 1 was started with.
        command = [sys.executable, "-m", init.__name__, *command]
    else:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, init.FORWARDED)
    init.replace_process(command, child)


def fetch(uri: str, folder: Path, environ: Mapping[str, str]) -> NoReturn:
    """Bring the model `uri` under `folder`, and nowhere else, and print where it is."""

    def bring_it(stop: Event) -> PreparedModel:
        logs.set_up(environ)
        from mlimg.runtime.bring import bring  # noqa: PLC0415 (of no use to an `exec` whose model is here)

        return bring(uri, folder, environ, _ignore, stop)

    prepared = _until_signal(bring_it)
    sys.stdout.write(f"{prepared.folder}\n")
    sys.exit(0)


def child_environment(environ: Mapping[str, str], prepared: PreparedModel) -> dict[str, str]:
    """The environment for the server: without credentials, but for those `MLIMG_KEEP_ENV` names."""
    keep = words(environ, _KEEP)
    kept = {name: value for name, value in environ.items() if name in keep or not _is_credential(name)}
    return {**kept, "MLIMG_MODEL_DIR": str(prepared.folder)}


def child_command(command: Sequence[str], prepared: PreparedModel, environ: Mapping[str, str]) -> list[str]:
    """Put the facts of the start into the arguments: `{model_dir}`, `{model_name}`, `{host}` and `{port}`."""
    facts = {
        "{model_dir}": str(prepared.folder),
        "{model_name}": prepared.manifest.name if prepared.manifest else "model",
        "{host}": environ.get("HOST") or DEFAULT_HOST,
        "{port}": str(listen_port(environ)),
    }
    filled = list(command)
    for placeholder, value in facts.items():
        filled = [argument.replace(placeholder, value) for argument in filled]
    return filled


def _is_credential(name: str) -> bool:
    return name in _CREDENTIALS or name.startswith(_CREDENTIAL_PREFIXES)


def _until_signal(prepare_it: Callable[[Event], PreparedModel]) -> PreparedModel:
    """Prepare in a thread. The process ends here when that fails, or on SIGTERM and SIGINT within two seconds.

    Signals are blocked afterwards: one that comes before the next program heeds it must not be lost.
    """
    outcome: SimpleQueue[PreparedModel | BaseException | int] = SimpleQueue()
    stop = Event()

    def run() -> None:
        try:
            outcome.put(prepare_it(stop))
        except BaseException as error:  # handed to the main thread, whatever it is
            outcome.put(error)

    before = {
        number: signal.signal(number, lambda number, _frame: outcome.put(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    signal.pthread_sigmask(signal.SIG_UNBLOCK, init.FORWARDED)
    bringing = Thread(target=run, name="prepare", daemon=True)
    bringing.start()
    result = outcome.get()
    if isinstance(result, int):
        stop.set()
        bringing.join(_STOP_SECONDS)
        logs.leave(128 + result)
    if isinstance(result, BaseException):
        logs.leave(logs.complain(result))
    signal.pthread_sigmask(signal.SIG_BLOCK, init.FORWARDED)
    for number, handler in before.items():
        signal.signal(number, handler)
    if not outcome.empty() and isinstance(late := outcome.get(), int):  # a signal that came after the model
        logs.leave(128 + late)
    return result


def _prepare(environ: Mapping[str, str], stop: Event) -> PreparedModel:
    logs.set_up(environ)
    prepared = prepare(environ, _ignore, stop)
    folder = server_dir(environ)
    if prepared.manifest is not None and (folder / "server.json").exists():
        ServerFacts.load(folder).check_serves(prepared.manifest)
    return prepared


def _ignore(_progress: Progress) -> None:
    """The log says enough."""
