"""How much memory this process may use: the limit of its control group, as containers have one."""

import logging
from pathlib import Path
from typing import Final

from mlimg.runtime.manifest import ModelManifest

log = logging.getLogger(__name__)
# https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files, and the first version's file.
_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_NO_LIMIT_BYTES: Final = 2**60  # the first version writes a number of that size for "none"


def memory_limit_bytes(files: tuple[Path, ...] = _LIMITS) -> int | None:
    """The limit, None where there is none or it cannot be told."""
    for path in files:
        try:
            limit = int(path.read_text(encoding="ascii"))
        except (OSError, ValueError):  # another version, or `max`
            continue
        return limit if limit < _NO_LIMIT_BYTES else None
    return None


def tell_need(manifest: ModelManifest, files: tuple[Path, ...] = _LIMITS) -> None:
    """Log how large a model is, before anything is read: a kernel that kills a process gives no reason."""
    name, limit = f"{manifest.name} {manifest.version}", memory_limit_bytes(files)
    if limit is not None and manifest.size_bytes > limit:
        log.warning(
            "%s has %d bytes and this container's memory is limited to %d: loaded whole, it ends the process (137)",
            name, manifest.size_bytes, limit,
        )  # fmt: skip
    else:
        log.info("%s has %d bytes in %d files", name, manifest.size_bytes, len(manifest.files))
