"""Files that a command writes for people: whole or not at all, and readable to others."""

import os
import tempfile
from pathlib import Path

from mlimg.runtime.errors import LocalIOError

FILE_MODE = 0o644


def write_text(path: Path, text: str, *, replace: bool = True) -> None:
    """Write a file in one step. Raises LocalIOError; FileExistsError where it is there and must not be replaced."""
    scratch: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.absolute().parent, prefix=f".{path.name}.", delete=False
        ) as file:
            scratch = Path(file.name)
            file.write(text)
            os.fchmod(file.fileno(), FILE_MODE)
        if replace:
            scratch.replace(path)
        else:
            os.link(scratch, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise LocalIOError(f"{path}: {error.strerror}") from error
    finally:
        if scratch is not None:
            scratch.unlink(missing_ok=True)
