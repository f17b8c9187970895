"""One plain line an event, on stderr; tracebacks only when `LOG_LEVEL` is debug."""

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, NoReturn

from mlimg.runtime.errors import MlimgError, SpecError, printable
from mlimg.runtime.server import tracing

log = logging.getLogger(__name__)
LEVELS: Final = ("debug", "info", "warning", "error")
FIELDS: Final = "fields"  # the attribute of a record that holds what its JSON line has beside the message
_PROBES: Final = ("/v2/health/", "/ping", "/metrics")


class OneLine(logging.Formatter):
    """Puts a record on one line: foreign text cannot forge another."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self, *, tracebacks: bool) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        """The record's line."""
        line = f"{self.formatTime(record)} {record.levelname.lower()} {printable(record.getMessage())}"
        if record.exc_info and record.exc_info[1] is not None:
            line += f" ({describe(record.exc_info[1])})"
            if self._tracebacks:
                line += "\n" + self.formatException(record.exc_info)
        return line


class JsonLine(logging.Formatter):
    """Puts a record on one line as a JSON object, with the request that was being worked on."""

    def __init__(self, *, tracebacks: bool) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        """The record's line."""
        value: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "logger": record.name,
        }
        if context := tracing.current():
            value["request_id"] = context.request_id
            if context.trace:
                value |= {"trace_id": context.trace.trace_id, "span_id": context.trace.span_id}
        value |= getattr(record, FIELDS, {})
        if record.exc_info and record.exc_info[1] is not None:
            value["error"] = describe(record.exc_info[1])
            if self._tracebacks:
                value["traceback"] = self.formatException(record.exc_info)
        return json.dumps(value)


class Requests:
    """The log of requests: a line for each, at `info` when they are asked for, else at `debug`."""

    def __init__(self, *, all_of_them: bool) -> None:
        self._level = logging.INFO if all_of_them else logging.DEBUG

    def answered(self, method: str, path: str, status: int, seconds: float, model: str) -> None:
        """Log a request that was answered. Probes of health and metrics are for debugging alone."""
        level = logging.DEBUG if path.startswith(_PROBES) else self._level
        if log.isEnabledFor(level):
            fields = {"method": method, "path": path, "status": status, "seconds": round(seconds, 6), "model": model}
            log.log(level, "%s %s %d %.4f s", method, path, status, seconds, extra={FIELDS: fields})


def set_up(environ: Mapping[str, str]) -> None:
    """Log to stderr from the level in `LOG_LEVEL` on. Raises SpecError for an unknown level."""
    level = (environ.get("LOG_LEVEL") or "info").lower()
    if level not in LEVELS:
        raise SpecError(f"LOG_LEVEL is {printable(level)!r}: expected one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    form = (environ.get("LOG_FORMAT") or "text").lower()
    if form not in _FORMATS:
        raise SpecError(f"LOG_FORMAT is {printable(form)!r}: expected one of {', '.join(_FORMATS)}")
    handler.setFormatter(_FORMATS[form](tracebacks=level == "debug"))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.raiseExceptions = False  # a closed log pipe is no reason to stop serving
    logging.captureWarnings(capture=True)
    logging.getLogger("uvicorn").setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


_FORMATS: Final = {"text": OneLine, "json": JsonLine}


def describe(error: BaseException) -> str:
    """An exception on one line: its class and the first line of its text, at most 300 characters."""
    text = str(error).strip().partition("\n")[0]
    return printable(f"{type(error).__name__}: {text}" if text else type(error).__name__)[:300]


def complain(error: BaseException) -> int:
    """Print the one line that says why the process ends; its exit status."""
    if isinstance(error, MlimgError):
        hint = f" (hint: {printable(error.hint)})" if error.hint else ""
        line, status = f"error: {printable(error.message)}{hint}", error.status
    else:
        line, status = f"error: this is a bug in the server: {describe(error)}", MlimgError.status
    logging.getLogger(__name__).debug("traceback", exc_info=error)
    with suppress(OSError):  # a closed stderr does not change the status
        print(line, file=sys.stderr, flush=True)  # noqa: T201 (the last word belongs to the person, not the log)
    return status


def leave(status: int) -> NoReturn:
    """End the process at once: nothing that still runs in a thread is waited for."""
    with suppress(OSError, AttributeError):  # a stream may be closed, or None
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
