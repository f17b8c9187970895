"""Packages that a model itself says it needs: a file of it names them, and its template names the file."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final

from mlimg.runtime.errors import ModelError, printable
from mlimg.sources import Inventory, ModelSource
from mlimg.spec.problems import InvalidSpecError
from mlimg.spec.requirement import required_package, requirements_in, with_package

_MAX_BYTES: Final = 1024 * 1024
_HINT: Final = "mend the file in the model's folder, or save the model again"


def model_requirements(
    source: ModelSource,
    inventory: Inventory,
    path: PurePosixPath,
    *,
    replaced: Mapping[str, str],
    written: Sequence[str],
) -> tuple[str, ...]:
    """The requirements in the model's file at `path`, with packages `replaced`.

    What the spec's `written` requirements name, they decide alone. An index is what a build trusts, an address it takes
    from nobody but the spec's author. Raises ModelError, and what reading it raises.
    """
    lines = _read(source, inventory, path)
    decided = {required_package(line) for line in written}
    kept = [line for line in lines if required_package(line) not in decided]
    for line in kept:
        if "://" in line:
            package = required_package(line)
            raise ModelError(
                f"`{printable(str(path))}` takes {package} from an address: a model's files do not decide that",
                hint=f"write {package} in server.requirements, with the address if you trust it",
            )
    return tuple(with_package(line, replaced.get(required_package(line), "")) for line in kept)


def _read(source: ModelSource, inventory: Inventory, path: PurePosixPath) -> tuple[str, ...]:
    name = printable(str(path))
    file = next((file for file in inventory if file.path == path), None)
    if file is None:
        raise ModelError(f"the model has no `{name}`, which names the packages it needs", hint=_HINT)
    if file.size_bytes > _MAX_BYTES:
        raise ModelError(f"`{name}` is over {_MAX_BYTES // 2**20} MiB: no list of packages is", hint=_HINT)
    with source.open(path) as opened:
        data = opened.read()
    try:
        return requirements_in(data.decode("utf-8-sig"), str(path))
    except InvalidSpecError as error:
        raise ModelError(error.message, hint=_HINT, log=error.log) from error
    except UnicodeDecodeError as error:
        raise ModelError(f"`{name}` is not UTF-8", hint=_HINT) from error
