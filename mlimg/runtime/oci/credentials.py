"""Credentials of registries, as Docker's configuration and its credential helpers keep them.

https://docs.docker.com/reference/cli/docker/login/ describes the file, the helper protocol and identity tokens.
"""

import base64
import binascii
import contextlib
import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mlimg.runtime.errors import CredentialsError, printable

_MAX_CONFIG_BYTES: Final = 4 * 1024 * 1024
_MAX_HELPER_BYTES: Final = 64 * 1024
_HELPER_SECONDS: Final = 8.0
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Docker Hub's credentials are kept under the address of its first API.
_DOCKER_HUB_KEY: Final = "https://index.docker.io/v1/"
_DOCKER_HUB_NAMES: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and password, or an identity token that is exchanged for access tokens."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


CredentialSource = Callable[[str], Credentials | None]
"""Gives the credentials for a registry's ``host[:port]``, None where it has none.

Raises CredentialsError, and RemoteTemporaryError when a service that gives them does not answer.
"""


def no_credentials(_registry: str) -> Credentials | None:
    """Know no credentials: public repositories only."""
    return None


def credentials_from(environ: Mapping[str, str]) -> CredentialSource:
    """Read the file that `REGISTRY_AUTH_FILE` names, else ``config.json`` in `DOCKER_CONFIG` or ``~/.docker``.

    The file is read at the first question, so that a model that needs no registry needs no file either.
    """
    if file := environ.get("REGISTRY_AUTH_FILE"):
        path = Path(file)
    elif folder := environ.get("DOCKER_CONFIG"):
        path = Path(folder) / "config.json"
    elif home := environ.get("HOME"):
        path = Path(home) / ".docker" / "config.json"
    else:
        return no_credentials
    return lambda registry: _lookup(_read_config(path), registry, environ)


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CONFIG_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise CredentialsError(f"cannot read the registry credentials in {path}: {error.strerror}") from error
    try:
        config = json.loads(data) if len(data) <= _MAX_CONFIG_BYTES else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        # Nothing of the content is shown: it holds passwords.
        raise CredentialsError(f"{path} is not a Docker configuration", hint="write it with `docker login`")
    return config


def _lookup(config: Mapping[str, Any], registry: str, environ: Mapping[str, str]) -> Credentials | None:
    host = _host(registry)
    for key, name in _table(config, "credHelpers").items():
        if _host(key) == host and isinstance(name, str):
            return _ask_helper(name, host, environ)
    if isinstance(store := config.get("credsStore"), str) and store:
        return _ask_helper(store, host, environ)
    for key, entry in _table(config, "auths").items():
        if _host(key) == host and isinstance(entry, dict):
            return _parse_entry(entry, host)
    return None


def _table(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = config.get(key)
    return table if isinstance(table, dict) else {}


def _host(key: str) -> str:
    host = key.removeprefix("https://").removeprefix("http://").split("/")[0].lower()
    return "docker.io" if host in _DOCKER_HUB_NAMES else host


def _parse_entry(entry: Mapping[str, Any], host: str) -> Credentials | None:
    token, packed = entry.get("identitytoken"), entry.get("auth")
    username, password = entry.get("username"), entry.get("password")
    if isinstance(packed, str) and packed:
        try:
            text = base64.b64decode(packed, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            text = ""
        username, colon, password = text.partition(":")
        if not colon:
            raise CredentialsError(f"the credentials kept for {host} are malformed", hint=f"docker login {host}")
    if isinstance(token, str) and token:
        return Credentials(username=username if isinstance(username, str) else "", identity_token=token)
    if isinstance(username, str) and isinstance(password, str) and username:
        return Credentials(username, password)
    return None


def _ask_helper(name: str, host: str, environ: Mapping[str, str]) -> Credentials | None:
    """Run ``docker-credential-NAME get``. Its output is never shown: it may hold the secret."""
    command = f"docker-credential-{name}"
    if not _HELPER_NAME.fullmatch(name):
        raise CredentialsError(f"`{printable(name)}` cannot be the name of a credential helper")
    server = _DOCKER_HUB_KEY if host == "docker.io" else host
    status, output = _run_helper(command, server, environ)
    if status != 0:
        if b"credentials not found" in output.lower():
            return None
        raise CredentialsError(f"{command} failed for {host} with status {status}", hint=f"docker login {host}")
    try:
        answer = json.loads(output)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, RecursionError, KeyError, TypeError):
        username = secret = None
    if not isinstance(username, str) or not isinstance(secret, str):
        raise CredentialsError(f"{command} gave no credentials for {host}", hint=f"docker login {host}")
    return Credentials(identity_token=secret) if username == "<token>" else Credentials(username, secret)


def _run_helper(command: str, server: str, environ: Mapping[str, str]) -> tuple[int, bytes]:
    try:
        # A session of its own, so that a helper that hangs goes with whatever it started.
        helper = subprocess.Popen(
            [command, "get"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environ),
            start_new_session=True,
        )
    except OSError as error:
        raise CredentialsError(
            f"the credential helper {command} cannot be run: {error.strerror}",
            hint="install it, or take it out of Docker's config.json",
        ) from error
    with helper:
        try:
            output = _converse(helper, server)
            return helper.wait(timeout=1), output
        except (TimeoutError, subprocess.TimeoutExpired):
            raise CredentialsError(f"{command} did not answer within {_HELPER_SECONDS:.0f} s") from None
        finally:
            _end_group(helper)


def _converse(helper: "subprocess.Popen[bytes]", server: str) -> bytes:
    """Ask and read at most `_MAX_HELPER_BYTES`. Raises TimeoutError."""
    assert helper.stdin is not None  # noqa: S101 (Popen was given pipes)
    assert helper.stdout is not None  # noqa: S101
    try:
        helper.stdin.write(server.encode())
        helper.stdin.close()
    except BrokenPipeError:
        pass  # it ended without reading; its status tells
    deadline = time.monotonic() + _HELPER_SECONDS
    output = b""
    while len(output) <= _MAX_HELPER_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([helper.stdout], [], [], left)[0]:
            raise TimeoutError
        piece = os.read(helper.stdout.fileno(), 65536)
        if not piece:
            return output
        output += piece
    raise CredentialsError("a credential helper gave more than 64 KiB")


def _end_group(helper: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it is gone already
        os.killpg(helper.pid, signal.SIGKILL)
