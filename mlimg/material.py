"""What the files that a spec names say, read once: template, requirements, server code, model listing.

All of it is offline but the listing of a remote model, which is a step of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from mlimg.files import ContextFile, read_context_file, read_context_folder, read_file
from mlimg.formats import CUSTOM, Detected, check_formats, detect
from mlimg.model_requirements import model_requirements
from mlimg.plan import Material
from mlimg.report import Reporter
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import LimitError, ModelError, SpecError, TemplateError, printable
from mlimg.runtime.manifest import SEVERAL
from mlimg.sources import Inventory, ModelSource
from mlimg.sources.address import is_remote
from mlimg.sources.local import open_source
from mlimg.sources.selection import Selection
from mlimg.sources.several import NamedModel, SeveralModels
from mlimg.spec.load import LoadedSpec
from mlimg.spec.requirement import requirements_in
from mlimg.template import find_template, serving_template

if TYPE_CHECKING:
    from mlimg.runtime.oci import Access

MAX_CODE_BYTES: Final = 64 * 1024 * 1024
_PEEKS_AT_ONCE: Final = 8  # at files of a remote model: each waits for its place to answer


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A spec that is right as far as can be told offline; its model is elsewhere, and no file of it is known yet.

    The material has neither framework nor format: both follow from the files. Several models are `parts`.
    """

    loaded: LoadedSpec
    material: Material
    parts: "tuple[Checked | Unlisted, ...]" = ()


@dataclass(frozen=True, slots=True)
class Checked:
    """A spec whose template, options and files are found right. Several models are `parts`, and one together."""

    loaded: LoadedSpec
    material: Material
    source: ModelSource
    inventory: Inventory
    detected: Detected | None  # None of several
    parts: "tuple[Checked, ...]" = ()


def check(loaded: LoadedSpec) -> Checked | Unlisted:
    """Read what the spec names on this machine.

    Raises SpecError, TemplateError, ModelError, ContextError, LimitError, LocalIOError.
    """
    spec = loaded.spec
    unlisted = check_server(loaded)
    if loaded.models:
        if not unlisted.material.template.needs_handler:
            name = unlisted.material.template.name
            place = loaded.origins["model.source"]
            raise SpecError(f"{place}: models: the server of template `{name}` takes one model", hint="write `model:`")
        return replace(unlisted, parts=tuple(check(model) for model in loaded.models))
    if is_remote(spec.model.source):
        return unlisted
    model = loaded.file("model.source", spec.model.source)
    _check_apart(loaded, model, unlisted.material.store)
    with _placed(loaded, "model.source"):
        source = open_source(
            model,
            follow_links=spec.model.follow_links,
            allowed=(loaded.project, *loaded.allowed),
            selection=_selection(loaded),
        )
    return _detected(Unlisted(loaded, replace(unlisted.material, source=str(model))), source)


def check_server(loaded: LoadedSpec) -> Unlisted:
    """Read what the spec names for the server alone: its model need not be there, and is not looked for.

    Raises SpecError, TemplateError, ContextError, LimitError, LocalIOError.
    """
    spec = loaded.spec
    with _placed(loaded, "server.template"):
        template = find_template(spec.server.template, lambda text: loaded.file("server.template", text))
    code = _code(loaded)
    template.check_code(code)
    options = template.check_options(spec.server.options)
    requirements = _requirements(loaded)
    if requirements and not template.fetches:
        raise SpecError(f"server.requirements: template `{template.name}` installs no packages", hint="leave them out")
    return Unlisted(
        loaded,
        Material(
            template=template.chosen(options),
            options=options,
            requirements=requirements,
            code=code,
            source=spec.model.source,
            store=_store(loaded),
            framework="",
            format="",
        ),
    )


def list_model(checked: Checked | Unlisted, access: "Access", report: Reporter) -> Checked:
    """List the files of a remote model, and look at what they are; of a local one, both are done.

    Raises what `mlimg.sources.remote.open_remote` raises.
    """
    if isinstance(checked, Checked):
        return checked
    if checked.parts:
        return _together(checked, tuple(list_model(part, access, report) for part in checked.parts))
    from mlimg.sources.remote import Wanted, open_remote  # noqa: PLC0415 (it brings HTTP, which a check needs not)

    loaded = checked.loaded
    model = loaded.spec.model
    wanted = Wanted(
        model.source,
        _selection(loaded),
        sha256=Digest.parse(f"sha256:{model.sha256}") if model.sha256 else None,
        allowed=(loaded.project, *loaded.allowed),
    )
    with report.step(f"look at {model.source}"):
        with _placed(loaded, "model.source"):
            source = open_remote(wanted, access)
        return _detected(checked, source, at_once=_PEEKS_AT_ONCE)


def _together(unlisted: Unlisted, parts: tuple[Checked, ...]) -> Checked:
    """Several models as the one that an image holds, in a server that has what each of them needs."""
    requirements = tuple(dict.fromkeys(line for part in parts for line in part.material.requirements))
    parts = tuple(replace(part, material=replace(part.material, requirements=requirements)) for part in parts)
    frameworks = {part.material.framework for part in parts}
    material = replace(
        unlisted.material,
        requirements=requirements,
        framework=frameworks.pop() if len(frameworks) == 1 else CUSTOM,
        format=SEVERAL,
    )
    source = SeveralModels([named(part) for part in parts])
    return Checked(unlisted.loaded, material, source, source.inventory(), None, parts)


def named(part: Checked) -> NamedModel:
    """One of several models."""
    model = part.loaded.spec.model
    assert model.name is not None  # noqa: S101 (the spec's reader sees to it)
    return NamedModel(model.name, model.version, part.material.framework, part.material.format, part.source)


def _detected(unlisted: Unlisted, source: ModelSource, *, at_once: int = 1) -> Checked:
    """See what the listed files are, and that the template serves it. Raises ModelError."""
    template, inventory = unlisted.material.template, source.inventory()
    # The model of a spec that has one needs no telling which it is.
    with _placed(unlisted.loaded, "model.source") if unlisted.loaded.at != "model" else nullcontext():
        detected = check_formats(
            detect(source, inventory, at_once=at_once),
            template.formats,
            allow_pickle=unlisted.loaded.spec.model.allow_pickle,
            template_frameworks=template.frameworks,
            template_versions=template.framework_versions,
            requirements=(*unlisted.material.requirements, *template.requirements),
            served_by=serving_template,
        )
        material = replace(unlisted.material, framework=detected.framework, format=detected.format)
        if named := template.model_requirements:
            path, written = detected.path.parent / named.file, material.requirements
            own = model_requirements(source, inventory, path, replaced=named.instead, written=written)
            material = replace(material, requirements=(*own, *written))
    return Checked(unlisted.loaded, material, source, inventory, detected)


def _selection(loaded: LoadedSpec) -> Selection:
    return Selection(loaded.spec.model.include, loaded.spec.model.exclude)


@contextmanager
def _placed(loaded: LoadedSpec, key: str) -> Iterator[None]:
    """Let an error about what a key names say where that is written, unless it has a place of its own."""
    try:
        yield
    except (ModelError, TemplateError) as error:
        if "template.yaml:" not in error.message:
            error.message = f"{loaded.origins[key]}: {loaded.shown(key)}: {error.message.removeprefix(f'{key}: ')}"
        raise


def _check_apart(loaded: LoadedSpec, model: Path, store: str | None) -> None:
    """See that no build changes the model of the next one. Raises SpecError."""
    written = {"the spec, and with it .mlimg": loaded.path}
    if store and "://" not in store:
        written["model.store"] = Path(store)
    for what, path in written.items():
        if path.is_relative_to(model):
            raise SpecError(
                f"{loaded.shown('model.source')}: the folder holds {what}, which is another after every build",
                hint="put the model into a folder of its own",
            )


def _requirements(loaded: LoadedSpec) -> tuple[str, ...]:
    """The user's requirements, one a line: written in the spec, or in the file it names."""
    written = loaded.spec.server.requirements
    if not isinstance(written, str):
        return tuple(written)
    path = loaded.file("server.requirements", written)
    try:
        text = read_file(path).decode("utf-8-sig")  # editors of Windows begin a file with a mark
    except UnicodeDecodeError as error:
        raise SpecError(f"server.requirements: {printable(written)} is not UTF-8", hint="save it as UTF-8") from error
    return requirements_in(text, written)


def _store(loaded: LoadedSpec) -> str | None:
    written = loaded.spec.model.store
    if written is None or "://" in written:
        return written
    return str(loaded.file("model.store", written))


def _code(loaded: LoadedSpec) -> tuple[ContextFile, ...]:
    """The user's server code: one file, or the files of a folder."""
    written = loaded.spec.server.code
    if written is None:
        return ()
    root = loaded.file("server.code", written)
    if root.is_file():
        return (read_context_file(root, PurePosixPath(root.name)),)
    if not root.is_dir():
        raise SpecError(f"server.code: there is no {printable(str(root))}", hint="it is relative to the spec's folder")
    files: list[ContextFile] = []
    total_bytes = 0
    for file in read_context_folder(root):
        files.append(file)
        total_bytes += len(file.data)
        if total_bytes > MAX_CODE_BYTES:
            raise LimitError(
                f"{printable(str(root))}: the server's code is over {MAX_CODE_BYTES // 2**20} MiB",
                hint="models and data belong to model.source, not to server.code",
            )
    if not files:
        raise SpecError(f"{printable(str(root))}: server.code names a folder without files")
    return tuple(sorted(files, key=lambda file: file.path))
