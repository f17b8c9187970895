"""Which of the detected files is the model that a template serves, and whether it can be."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Final

from mlimg.formats.detect import CUSTOM, Detected, models, running_code, within
from mlimg.formats.looks import PART
from mlimg.formats.versions import check_versions
from mlimg.runtime.errors import ModelError, printable

_IN_SHARDS: Final = frozenset({"safetensors", "gguf"})  # large models come in several files


def check_formats(
    detected: Sequence[Detected],
    template_formats: Sequence[str],
    *,
    allow_pickle: bool,
    template_frameworks: Sequence[str] = (),
    template_versions: Sequence[str] = (),
    requirements: Sequence[str] = (),
    served_by: Callable[[str], str | None] = lambda _format: None,
) -> Detected:
    """Choose the model's main file, of a format that the template serves (none or `any`: whatever it is).

    Several candidates are one model only where they are shards of one format. What a served format's file holds is of
    the template's framework, and where the file tells the version, of one of its `template_versions` and of what the
    server's `requirements` pin. `served_by` names a template for formats that this one does not serve. Raises
    ModelError.
    """
    if not template_formats or "any" in template_formats:
        _check_pickle([file for file in detected if file.needs_pickle], allow_pickle)
        sound = [file for file in models(detected) if not file.damage]
        if len(sound) != 1:
            return Detected(CUSTOM, CUSTOM, any(file.needs_pickle for file in sound), PurePosixPath())
        return replace(sound[0], framework=CUSTOM)
    served = [file for file in detected if file.format in template_formats]
    if not served:
        raise _not_served(detected, template_formats, served_by)
    chosen = _main(served)
    _check_damage([chosen, *(file for file in detected if file in served or _belongs(file, chosen))])
    _check_pickle(running_code(chosen, detected), allow_pickle)
    notes = check_versions(chosen, template_versions, requirements)
    chosen = replace(chosen, notes=notes)
    # What is pickled may be a class of the user's: the template that loads the format says what it is served as.
    if template_frameworks and chosen.framework not in template_frameworks:
        return replace(chosen, framework=template_frameworks[0])
    return chosen


def _main(served: Sequence[Detected]) -> Detected:
    outermost = models(served)
    if len(outermost) == 1 or (len({file.format for file in outermost}) == 1 and outermost[0].format in _IN_SHARDS):
        return outermost[0]
    names = ", ".join(f"`{printable(str(file.path))}`" for file in outermost[:5])
    more = f" and {len(outermost) - 5} more" if len(outermost) > 5 else ""
    raise ModelError(
        f"the model has several files that could be it: {names}{more}",
        hint="let model.source name the one file",
    )


def _belongs(file: Detected, chosen: Detected) -> bool:
    return within(file, chosen) or (file.format == PART and file.path.parent == chosen.path.parent)


def _check_damage(files: Sequence[Detected]) -> None:
    for file in files:
        if file.damage:
            raise _damaged(file)


def _damaged(file: Detected) -> ModelError:
    name = "" if file.format == PART else f" {file.format}"
    return ModelError(
        f"`{printable(str(file.path))}` is a damaged{name} file: {file.damage}",
        hint="save the model again with all its files, and let the copy finish",
    )


def _check_pickle(pickles: Sequence[Detected], allow_pickle: bool) -> None:
    if pickles and not allow_pickle:
        raise ModelError(
            f"`{printable(str(pickles[0].path))}` is a {pickles[0].format} file: loading it runs the code in it",
            hint="if you trust who made it, write `model.allow_pickle: true`; skops and ONNX files need no such trust",
        )


def _not_served(
    detected: Sequence[Detected], formats: Sequence[str], served_by: Callable[[str], str | None]
) -> ModelError:
    wanted = " or ".join(", ".join(formats).rsplit(", ", 1))
    found = models(detected)
    if not found:
        return ModelError(
            f"no file of the model looks like {wanted}, which the template serves",
            hint="`mlimg templates` shows what each template serves; `python` serves anything by your own handler",
        )
    first = found[0]
    if first.damage:
        return _damaged(first)
    other = served_by(first.format)
    return ModelError(
        f"`{printable(str(first.path))}` looks like {first.format}; the template serves {wanted}",
        hint=f"`server.template: {other}` serves it" if other else "`mlimg templates` shows what each template serves",
    )
