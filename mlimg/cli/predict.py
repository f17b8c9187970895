"""The command `mlimg predict`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mlimg.cli import session
from mlimg.cli.options import Debug, Json, Quiet, terminal_of
from mlimg.record import Release, read_record
from mlimg.runtime.errors import LimitError, LocalIOError, UsageError

MAX_ROWS_BYTES = 64 * 1024 * 1024  # what a server takes in one request


def predict(
    context: typer.Context,
    *,
    rows: Annotated[Path, typer.Argument(help="Rows as CSV or JSON; `-` is stdin.", allow_dash=True)] = Path("-"),
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="The spec, or its folder.", show_default="current folder")
    ] = Path(),
    url: Annotated[
        str | None, typer.Option("--url", help="A server somewhere else.", show_default="what `mlimg run` started")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The model to ask.", show_default="the release's")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Send rows to a running server and print what it predicts.

    Rows are CSV (with or without a header) or JSON. A line is printed for each.
    """
    from mlimg.client import Client
    from mlimg.predict import answer_table, infer_request, parse_rows, table_text

    terminal = terminal_of(context)
    folder = session.spec_folder(path)
    name = model or _only_model(read_record(folder))
    asked = parse_rows(_read(rows))
    if url is None:
        from mlimg.engine.docker import Engine
        from mlimg.run import running

        client = Client(running(Engine.connect(), folder).url, local=True)
    else:
        client = Client(url)
    request = asked if isinstance(asked, dict) else infer_request(asked, client.inputs(name))
    answer = client.infer(name, request)
    if terminal.json:
        terminal.document(answer)
    else:
        terminal.text(table_text(answer_table(answer)))


def _only_model(release: Release) -> str:
    """The model to ask where there is one. Raises UsageError."""
    names = list(release.models) or [release.name]
    if len(names) > 1:
        raise UsageError(f"the release has several models: {', '.join(names)}", hint="--model NAME says which to ask")
    return names[0]


def _read(rows: Path) -> str:
    try:
        if str(rows) == "-":
            if sys.stdin.isatty():
                raise UsageError("no rows to predict", hint="name a file, or pipe rows in")
            data = sys.stdin.buffer.read(MAX_ROWS_BYTES + 1)
        else:
            with rows.open("rb") as file:
                data = file.read(MAX_ROWS_BYTES + 1)
    except OSError as error:
        raise LocalIOError(f"{rows}: {error.strerror}") from error
    if len(data) > MAX_ROWS_BYTES:
        raise LimitError(f"{rows}: more than 64 MiB of rows in one request", hint="send them in parts")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{rows}: not UTF-8 text") from error
