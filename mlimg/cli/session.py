"""What a command starts from: the spec with what was laid over it, and the means that the stages act with."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlimg.cli.terminal import Terminal
from mlimg.runtime.errors import LocalIOError, SpecError, UsageError
from mlimg.spec.pattern import Pattern
from mlimg.temporary import temporary_folder

if TYPE_CHECKING:
    from mlimg.means import Means
    from mlimg.runtime.oci import Access
    from mlimg.spec.load import LoadedSpec

# Where systems keep their roots in one file: Debian, Fedora, Alpine and macOS.
_SYSTEM_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)


@dataclass(frozen=True, slots=True)
class Laid:
    """What the command line lays over the spec."""

    sets: Sequence[str] = ()
    allow_paths: Sequence[Path] = ()
    secrets: Sequence[str] = ()
    ca_bundle: Path | None = None


def current_folder() -> Path:
    """The current folder. Raises SpecError where it has been deleted."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise SpecError("the current folder has been deleted", hint="change to a folder that exists") from None


def load(path: Path, laid: Laid) -> "LoadedSpec":
    """Read the spec and lay MLIMG_SET and --set over it. Raises SpecError, LimitError, LocalIOError."""
    from mlimg.spec.load import Overrides, load_spec

    current_folder()
    allowed = [Path(text) for text in os.environ.get("MLIMG_ALLOW_PATH", "").split(os.pathsep) if text]
    return load_spec(
        path,
        Overrides(
            environment=os.environ.get("MLIMG_SET", ""),
            sets=tuple(laid.sets),
            allow_paths=tuple(folder.expanduser() for folder in (*allowed, *laid.allow_paths)),
        ),
    )


def spec_folder(path: Path) -> Path:
    """The folder whose `.mlimg` holds what was built from `path`, a spec or its folder."""
    return (current_folder() / (path if path.is_dir() else path.parent)).resolve()


def chosen_pattern(loaded: "LoadedSpec", asked: Pattern | None) -> Pattern:
    """The pattern to build. Raises UsageError where neither the command line nor the spec has one."""
    pattern = asked or loaded.spec.pattern
    if pattern is None:
        raise UsageError(
            f"{loaded.path.name}: no pattern is chosen",
            hint="give `--pattern in-image` or `--pattern load`, or write `pattern:` in the spec",
        )
    return pattern


@contextlib.contextmanager
def means(terminal: Terminal, loaded: "LoadedSpec", laid: Laid) -> Iterator["Means"]:
    """Collect credentials, certificates and secrets. What is written for it is gone afterwards."""
    from mlimg.means import Means
    from mlimg.record import record_folder

    build = loaded.spec.build
    with ca_bundle(laid.ca_bundle) as bundle:
        yield Means(
            access=_access(build.insecure_registries, bundle),
            report=terminal.reporter(),
            secrets=secrets(build.secrets, laid.secrets, os.environ),
            ca_bundle=bundle,
            created=_created(os.environ.get("SOURCE_DATE_EPOCH", "0")),
            today=datetime.now(UTC).date().isoformat(),
            folder=record_folder(loaded.path.parent),
        )


@contextlib.contextmanager
def access(asked_ca_bundle: Path | None = None) -> Iterator["Access"]:
    """How a command without a spec reaches registries; those of MLIMG_INSECURE_REGISTRIES speak plain HTTP."""
    from mlimg.runtime.variables import words

    with ca_bundle(asked_ca_bundle) as bundle:
        yield _access(words(os.environ, "MLIMG_INSECURE_REGISTRIES"), bundle)


def _access(insecure: Sequence[str], bundle: Path | None) -> "Access":
    from mlimg.runtime.oci import Access, registry_credentials

    return Access(registry_credentials(os.environ, bundle), frozenset(insecure), bundle, environ=os.environ)


def _created(epoch: str) -> str:
    """The moment that annotations name: not now, which would make equal releases differ."""
    if not epoch.isdecimal() or len(epoch) > 11:
        raise UsageError("SOURCE_DATE_EPOCH is not a count of seconds since 1970")
    return datetime.fromtimestamp(int(epoch), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def secrets(named: Sequence[str], given: Sequence[str], environment: Mapping[str, str]) -> dict[str, Path]:
    """The files of the build secrets: from ``--secret ID=FILE``, else from ``MLIMG_SECRET_<ID>``. Raises UsageError."""
    files: dict[str, Path] = {}
    for identifier in named:
        variable = "MLIMG_SECRET_" + "".join(c if c.isalnum() else "_" for c in identifier).upper()
        if environment.get(variable):
            files[identifier] = Path(environment[variable])
    for text in given:
        identifier, separator, file = text.partition("=")
        if not separator or not file:
            # The text itself may be the secret, given here by mistake.
            raise UsageError("--secret takes ID=FILE", hint="such as --secret netrc=~/.netrc")
        if identifier not in named:
            raise UsageError(
                f"--secret {identifier}: the spec names no such secret",
                hint=f"write `build: {{secrets: [{identifier}]}}` in the spec",
            )
        files[identifier] = Path(file)
    return {identifier: _readable(identifier, path.expanduser().absolute()) for identifier, path in files.items()}


def _readable(identifier: str, path: Path) -> Path:
    if not os.access(path, os.R_OK) or path.is_dir():
        raise UsageError(f"secret {identifier}: {path} is not a file that can be read")
    return path


@contextlib.contextmanager
def ca_bundle(asked: Path | None) -> Iterator[Path | None]:
    """One private file with the system's roots and the bundle that is asked for, or None where none is.

    A build or client that is given a bundle trusts nothing else, so ours must hold both. Raises UsageError for a
    bundle without certificates, LocalIOError where it cannot be read.
    """
    given = (
        ("--ca-bundle", str(asked) if asked else ""),
        ("MLIMG_CA_BUNDLE", os.environ.get("MLIMG_CA_BUNDLE", "")),
        ("SSL_CERT_FILE", os.environ.get("SSL_CERT_FILE", "")),
    )
    origin, text = next(((origin, text) for origin, text in given if text), ("", ""))
    if not text:
        yield None
        return
    certificates = _with_system_roots(origin, Path(text).expanduser())
    with temporary_folder("mlimg-ca-", len(certificates)) as folder:
        merged = folder / "ca-bundle.pem"
        try:
            merged.write_bytes(certificates)
        except OSError as error:
            raise LocalIOError(f"{merged}: {error.strerror}", hint="set TMPDIR to a folder with room") from error
        yield merged


def _with_system_roots(origin: str, path: Path) -> bytes:
    import ssl

    try:
        added = path.read_bytes()
        if b"-----BEGIN CERTIFICATE-----" not in added:
            raise UsageError(f"{origin}: {path} holds no certificates in PEM form")
        for name in (ssl.get_default_verify_paths().openssl_cafile, *_SYSTEM_BUNDLES):
            roots = Path(name)
            if roots.is_file():
                return added if roots.samefile(path) else roots.read_bytes() + b"\n" + added
    except OSError as error:
        raise LocalIOError(f"{origin}: {path}: {error.strerror}") from error
    return added
