"""What the stages act with: the engine, the registries, the reporter and the files of secrets."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlimg.hashing.cache import HashCache
from mlimg.record import make_folder
from mlimg.report import Reporter
from mlimg.runtime.errors import LocalIOError
from mlimg.runtime.locks import try_lock

if TYPE_CHECKING:  # the engine's SDK takes a third of a second to import: only commands that need it pay
    from mlimg.engine.docker import Engine
    from mlimg.runtime.oci import Access, Journal, Registry

_POLL_SECONDS: Final = 0.1


def _connect() -> "Engine":
    from mlimg.engine.docker import Engine  # noqa: PLC0415 (see above)

    return Engine.connect()


class Means:
    """Collected by `cli` from arguments and environment; connections are made when first needed, once."""

    def __init__(
        self,
        *,
        access: "Access",
        report: Reporter,
        connect: Callable[[], "Engine"] = _connect,
        secrets: Mapping[str, Path] | None = None,
        ca_bundle: Path | None = None,
        build_timeout_seconds: float = 3600,
        created: str = "1970-01-01T00:00:00Z",
        today: str = "1970-01-01",
        folder: Path | None = None,
    ) -> None:
        self.access = access
        self.report = report
        self.secrets = dict(secrets or {})
        self.ca_bundle = ca_bundle
        self.build_timeout_seconds = build_timeout_seconds
        self.created = created  # RFC 3339, from SOURCE_DATE_EPOCH: what annotations say
        self.today = today  # what a server is published under, so that its age can be told
        self.folder = folder  # `.mlimg` beside the spec; None where nothing is kept from run to run
        self._connect = connect

    @cached_property
    def hashes(self) -> HashCache:
        """What earlier runs hashed."""
        return HashCache(self.folder)

    @cached_property
    def journal(self) -> "Journal | None":
        """Uploads that were cut, for a later run to go on with."""
        from mlimg.runtime.oci import Journal  # noqa: PLC0415 (urllib3 is not needed for a check)

        return Journal(self.folder / "uploads") if self.folder else None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One at a time of all who push the same spec from here: the next finds in the registry what this one sent."""
        descriptor = None
        with suppress(OSError, LocalIOError):  # a folder that cannot be written is for the record to tell
            descriptor = self._take_turn()
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _take_turn(self) -> int | None:
        if self.folder is None:
            return None
        make_folder(self.folder)
        told = False
        while (descriptor := try_lock(self.folder / "push.lock")) is None:
            if not told:
                self.report.note("another run pushes this spec: this one goes on when that has ended")
                told = True
            time.sleep(_POLL_SECONDS)
        return descriptor

    @cached_property
    def engine(self) -> "Engine":
        """The Docker Engine of the current context. Raises EngineError when none answers."""
        return self._connect()

    @cached_property
    def registry(self) -> "Registry":
        """The registry client."""
        from mlimg.runtime.oci import Registry  # noqa: PLC0415 (urllib3 is not needed for a check)

        return Registry(self.access)

    @cached_property
    def quick_registry(self) -> "Registry":
        """The same for questions whose answer is welcome but not needed: one attempt, five seconds of silence."""
        from mlimg.runtime.oci import Registry  # noqa: PLC0415 (see above)

        return Registry(replace(self.access, attempts=1, stall_seconds=5))
