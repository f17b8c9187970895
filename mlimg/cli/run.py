"""The command `mlimg run`."""

import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlimg.cli import session, signals
from mlimg.cli.options import Debug, Json, Quiet, SpecPath, terminal_of
from mlimg.cli.terminal import Terminal
from mlimg.cli.units import seconds
from mlimg.record import Release, read_record
from mlimg.runtime.errors import EngineError, MlimgError, UsageError, printable
from mlimg.runtime.variables import DEFAULT_GRPC_PORT, DEFAULT_PORT

if TYPE_CHECKING:
    from mlimg.engine.docker import Engine
    from mlimg.run import Running

STOP_SECONDS = 10  # the requests that are under way may finish


def run(
    context: typer.Context,
    *,
    path: SpecPath = Path(),
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when the server is ready.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop and remove what --detach left running.")] = False,
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, help="This machine's port; 0 takes a free one.")
    ] = DEFAULT_PORT,
    grpc_port: Annotated[
        int,
        typer.Option("--grpc-port", min=0, max=65535, help="The same for gRPC, of a server that speaks it."),
    ] = DEFAULT_GRPC_PORT,
    gpus: Annotated[
        str, typer.Option("--gpus", help="As `docker run --gpus`: all, or a count.", show_default=False)
    ] = "",
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="NAME[=VALUE]", help="Set a variable, or pass yours on. Repeatable."),
    ] = None,
    ready_timeout: Annotated[
        float,
        typer.Option("--ready-timeout", metavar="SECONDS", min=1, help="How long the server may take to be ready."),
    ] = 300,
    print_only: Annotated[
        bool, typer.Option("--print", help="Print the equal `docker run` and do nothing else.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run the last release: its log until Ctrl-C, or detached."""
    from mlimg.run import LOOPBACK, Wishes, place_model, run_options, started

    terminal = terminal_of(context)
    folder = session.spec_folder(path)
    if stop:
        _stop(terminal, folder)
        return
    release = read_record(folder)
    placement = place_model(release, linux=sys.platform == "linux", environ=os.environ)
    wishes = Wishes(
        port=port or _free_port(), grpc_port=grpc_port or _free_port(), env=_environment(env or ()), gpus=gpus
    )
    options = run_options(release, placement, wishes, folder)
    if print_only:
        terminal.text(replace(options, remove=True).command_line(detach=detach) + "\n")
        return
    from mlimg.engine.docker import Engine

    if placement.note:
        terminal.note(placement.note)
    engine = Engine.connect()
    _see_to_image(engine, release, terminal)
    server = started(engine, options, release.ready)
    grpc = "" if release.grpc_port is None else f"{LOOPBACK}:{wishes.grpc_port}"
    if grpc:
        terminal.note(f"gRPC at {grpc}")
    if detach:
        _until_ready(server, ready_timeout, terminal)
        results = {"container": server.container.id, "url": server.url, **({"grpc": grpc} if grpc else {})}
        terminal.results(results, results)
    else:
        _in_foreground(server, ready_timeout, terminal)


def _until_ready(server: "Running", timeout_seconds: float, terminal: Terminal) -> None:
    """Wait; a container that does not get there is removed."""
    from mlimg.run import wait_until_ready

    try:
        took = wait_until_ready(server, timeout_seconds)
    except BaseException:
        server.container.remove()
        raise
    terminal.note(f"ready at {server.url} after {seconds(took)}")


def _in_foreground(server: "Running", timeout_seconds: float, terminal: Terminal) -> None:
    """Show the log until the container ends or a signal does; nothing of it stays."""
    from mlimg.run import ended, wait_until_ready

    signals.allow_cleanup(STOP_SECONDS + 5)
    container = server.container
    log = threading.Thread(target=_show_log, args=(server, terminal), daemon=True)
    log.start()
    try:
        terminal.note(
            f"ready at {server.url} after {seconds(wait_until_ready(server, timeout_seconds))}; Ctrl-C stops it"
        )
        status = container.wait()
        log.join(timeout=2)
        if status:
            raise ended(status, ())
    except MlimgError as error:
        log.join(timeout=2)
        if not terminal.json:
            error.log = ()  # the log has been shown
        raise
    except signals.Stopped:
        container.stop(STOP_SECONDS)
        raise
    finally:
        container.remove()


def _show_log(server: "Running", terminal: Terminal) -> None:
    try:
        for line in server.container.logs():
            terminal.say(printable(line))
    except MlimgError as error:  # the container is being removed
        if not isinstance(error, EngineError):
            raise


def _see_to_image(engine: "Engine", release: Release, terminal: Terminal) -> None:
    part = release.runnable
    if engine.image(part.pinned) is not None:
        return
    if not part.published:
        raise EngineError(f"{part.reference}: the engine does not have it any more", hint="run `mlimg build` again")
    with terminal.reporter().step(f"pull {part.reference}") as step:
        engine.pull(part.pinned, on_text=step.update)


def _stop(terminal: Terminal, folder: Path) -> None:
    from mlimg.engine.docker import Engine
    from mlimg.run import containers_of

    signals.allow_cleanup(STOP_SECONDS + 5)
    found = containers_of(Engine.connect(), folder, ended_too=True)
    for server in found:
        server.container.stop(STOP_SECONDS)
        server.container.remove()
    terminal.note(
        f"stopped and removed: {', '.join(server.container.name for server in found) or 'nothing was running'}"
    )


def _environment(given: Sequence[str]) -> dict[str, str]:
    variables = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not name:
            raise UsageError("--env takes NAME=VALUE, or the NAME of a variable that is set here")
        if not separator and name not in os.environ:
            raise UsageError(f"--env {printable(name)[:100]}: that variable is not set here")
        variables[name] = value if separator else os.environ[name]
    return variables


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
