"""OCI layouts as commands take them: ``oci:DIR``, ``oci:DIR:NAME``, or a folder that is one."""

from pathlib import Path
from typing import TYPE_CHECKING

from mlimg.runtime.errors import UsageError, printable

if TYPE_CHECKING:
    from mlimg.layout import Layout, LayoutEntry


def layout_folder(text: str) -> tuple[Path, str] | None:
    """The folder of a layout, and the name of one image in it ("" for all); None for another argument."""
    if text.startswith("oci:") and not text.startswith("oci://"):
        rest = text.removeprefix("oci:")
        if Path(rest).exists():
            return Path(rest), ""
        folder, _, name = rest.partition(":")  # as skopeo reads it
        return Path(folder), name
    return (Path(text), "") if (Path(text) / "oci-layout").is_file() else None


def named_entries(layout: "Layout", name: str) -> list["LayoutEntry"]:
    """The images of a layout that have this name, all for "". Raises UsageError where none has it."""
    found = [entry for entry in layout.entries() if not name or entry.name == name]
    if name and not found:
        names = ", ".join(entry.name for entry in layout.entries())
        raise UsageError(f"{layout.folder} has no {printable(name)}", hint=f"it has {printable(names)}")
    return found
