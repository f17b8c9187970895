"""A server's plan and its base become a build context: Dockerfile, files, and the key of what comes out. Pure."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from mlimg.confined import write_confined
from mlimg.dockerfile import env, parse_dockerfile, write_dockerfile, write_file
from mlimg.files import ContextFile
from mlimg.plan import BaseImage, ServerPlan
from mlimg.runtime.digest import Digest, canonical_json
from mlimg.runtime.errors import SpecError, TemplateError
from mlimg.runtime.reference import SERVER_INPUTS_LABEL
from mlimg.spec.requirement import required_package, requirement
from mlimg.template import (
    DOCKERFILE,
    HANDLER,
    IMAGE_HOME,
    OBJECT_STORE_REQUIREMENTS,
    RUNTIME_REQUIREMENTS,
    SERVER_REQUIREMENTS,
)

DEFAULT_INDEX: Final = "https://pypi.org/simple"
CA_BUNDLE: Final = "ca_bundle"  # the secret that every build may have, and none needs


@dataclass(frozen=True, slots=True)
class ExpectedConfig:
    """What the config of the built image must say; an empty value is not compared."""

    user: str
    env: Mapping[str, str]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    exposed_ports: tuple[str, ...]
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Context:
    """A build context in memory. `files` are sorted by path, the Dockerfile is not among them."""

    dockerfile: str
    files: tuple[ContextFile, ...]
    key: Digest
    expected: ExpectedConfig

    def tar(self) -> bytes:
        """The context as `docker buildx build -` reads it; equal contexts give equal bytes."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path in sorted({parent for file in self.files for parent in file.path.parents} - {PurePosixPath()}):
                folder = tarfile.TarInfo(str(path))
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(folder)
            for file in (ContextFile(PurePosixPath("Dockerfile"), self.dockerfile.encode()), *self.files):
                entry = tarfile.TarInfo(str(file.path))
                entry.size, entry.mode = len(file.data), file.mode
                archive.addfile(entry, io.BytesIO(file.data))
        return buffer.getvalue()


def render(plan: ServerPlan, base: BaseImage) -> Context:
    """Write the context of a server. Equal plans and bases give equal bytes.

    Raises TemplateError for what the template does wrong, SpecError for settings no image can have, LimitError
    for what no engine reads.
    """
    plan.template.check_code(plan.code)
    files = _files(plan)
    body = _write(plan, base.pinned)
    key = _key(plan, base, files)
    labels = {
        SERVER_INPUTS_LABEL: plan.inputs.text,
        "io.mlimg.server.key": key.text,
        "io.mlimg.server.template": f"{plan.template.name}@{plan.template.version}",
        "io.mlimg.server.version": plan.version,
        "org.opencontainers.image.base.name": base.written,
        "org.opencontainers.image.version": plan.version,
    }
    return Context(f"{body}{_label(labels)}", files, key, _expected(plan, body, labels))


def render_with_model(context: Context, labels: Mapping[str, str]) -> str:
    """The Dockerfile of a server with its model: the folder `models` of the context, and the model's labels.

    `COPY` gives files from outside to root whatever `USER` says, and leaves the existing `/models` as it is,
    so that the files, modes and owners are those that `append` writes.
    """
    return f"{context.dockerfile}COPY models/ /models/\n{_label(labels)}"


def _write(plan: ServerPlan, base: str) -> str:
    template = plan.template
    values = {
        "base": base,
        # Who writes a template can write into its cache: only templates that ship with mlimg share theirs.
        "cache": "mlimg" if template.digest is None else f"mlimg-{template.digest.hex[:12]}",
        "index": plan.index or DEFAULT_INDEX,
        "secrets": [secret for secret in plan.secrets if secret != CA_BUNDLE],
        "env": dict(sorted(plan.env.items())),
        "options": dict(plan.options),
        "command": list(template.command),
        "port": str(template.health.port),
        "grpc_port": str(template.grpc_port(plan.options) or ""),
    }
    write = write_dockerfile if template.builtin else write_confined
    text = write(DOCKERFILE, template.sources, values)
    return text if text.endswith("\n") else f"{text}\n"


def _rendered(plan: ServerPlan, name: str) -> str:
    """A file of the template that the options decide."""
    template, source = plan.template, f"{name}.j2"
    values = {"options": dict(plan.options), "port": str(template.health.port)}
    if template.builtin:
        return write_file(source, template.sources, values)
    return write_confined(source, template.sources, values, of_dockerfile=False)


def _files(plan: ServerPlan) -> tuple[ContextFile, ...]:
    """The template's files, the user's code (whose handler wins), and what the plan says."""
    files = {file.path: file for file in plan.template.files}
    for file in plan.code:
        files[IMAGE_HOME / "code" / file.path] = file
    if IMAGE_HOME / "code" / HANDLER in files:
        files.pop(IMAGE_HOME / HANDLER, None)
    files |= {IMAGE_HOME / name: _text_file(_rendered(plan, name)) for name in plan.template.rendered}
    if plan.template.fetches:
        files |= _runtime_files(plan)
    return tuple(ContextFile(path, files[path].data, files[path].mode) for path in sorted(files))


def _runtime_files(plan: ServerPlan) -> dict[PurePosixPath, ContextFile]:
    """What our runtime and its installation read."""
    files = {}
    server = {
        "template": plan.template.name,
        "templateVersion": plan.template.version,
        "frameworks": list(plan.template.frameworks),
        "formats": list(plan.template.formats),
        "options": {name: value for name, value in plan.options.items() if name not in plan.template.serving},
        "serving": {name: value for name, value in plan.options.items() if name in plan.template.serving},
    }
    requirements = _requirements(plan)
    files[PurePosixPath("build/requirements.txt")] = _text_file("".join(f"{line}\n" for line in requirements))
    if plan.indexes:
        files[PurePosixPath("build/pyproject.toml")] = _text_file(_sources(plan, requirements))
    files[IMAGE_HOME / "server.json"] = _text_file(json.dumps(server, indent=1, sort_keys=True) + "\n")
    return files


def _requirements(plan: ServerPlan) -> tuple[str, ...]:
    """The runtime's, the template's and the user's requirements, in one file: they are resolved together."""
    for line in plan.requirements:
        try:
            requirement(line)
        except ValueError as error:
            raise SpecError(f"server.requirements: {error}") from error
    objects = OBJECT_STORE_REQUIREMENTS if plan.fetches_objects else ()
    server = SERVER_REQUIREMENTS if plan.template.needs_handler else ()
    return (*RUNTIME_REQUIREMENTS, *server, *objects, *plan.template.requirements, *plan.requirements)


def _sources(plan: ServerPlan, requirements: Sequence[str]) -> str:
    """A project that takes single packages from indexes of their own, which requirements.txt cannot say.

    https://docs.astral.sh/uv/concepts/indexes/#pinning-a-package-to-an-index
    """
    required = {required_package(line) for line in requirements}
    if unknown := sorted(plan.indexes.keys() - required):
        raise SpecError(
            f"build.indexes.{unknown[0]}: no requirement names {unknown[0]}",
            hint="what only other packages need has to be in server.requirements, too, to come from there",
        )
    names = sorted(plan.indexes)
    # With their markers: what is named here without one is installed everywhere.
    there = [line.partition(" --hash")[0] for line in requirements if required_package(line) in plan.indexes]
    lines = ["[project]", 'name = "server"', 'version = "0"', f"dependencies = {json.dumps(there)}"]
    lines += ["[tool.uv.sources]", *(f'{name} = {{ index = "of-{name}" }}' for name in names)]
    for name in names:
        lines += ["[[tool.uv.index]]", f'name = "of-{name}"', f"url = {json.dumps(plan.indexes[name])}"]
        lines += ["explicit = true"]
    return "".join(f"{line}\n" for line in lines)


def _text_file(text: str) -> ContextFile:
    return ContextFile(PurePosixPath(), text.encode())


def _key(plan: ServerPlan, base: BaseImage, files: Sequence[ContextFile]) -> Digest:
    """The digest of all that goes into a server; the base counts by its identity, whatever `FROM` calls it."""
    contents = {str(file.path): [file.mode, Digest.of(file.data).text] for file in files}
    return Digest.of(
        canonical_json(
            {
                "inputs": plan.inputs.text,
                "base": base.identity.text,
                "dockerfile": _write(plan, base.written),
                "files": contents,
            }
        )
    )


def _label(labels: Mapping[str, str]) -> str:
    # Labels come last: changing one leaves every earlier layer cached.
    try:
        return f"LABEL {env(labels)}\n"
    except ValueError as error:
        raise TemplateError(f"a label cannot be written: {error}") from error


def _expected(plan: ServerPlan, body: str, labels: Mapping[str, str]) -> ExpectedConfig:
    """What the last stage of the Dockerfile sets."""
    last: dict[str, str] = {}
    for instruction in parse_dockerfile(body):
        if instruction.name == "FROM":
            last.clear()
        last[instruction.name] = instruction.rest
    user = last.get("USER", "")
    return ExpectedConfig(
        user="" if "$" in user else user,  # an ARG's value is known to the builder alone
        env=dict(plan.env),
        entrypoint=_exec_form(plan, last, "ENTRYPOINT"),
        cmd=_exec_form(plan, last, "CMD"),
        exposed_ports=tuple(f"{port}/tcp" for port in last.get("EXPOSE", "").split() if port.isdecimal()),
        labels=dict(labels),
    )


def _exec_form(plan: ServerPlan, last: Mapping[str, str], name: str) -> tuple[str, ...]:
    text = last.get(name)
    if text is None:
        return ()
    try:
        words = json.loads(text)
    except ValueError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        # A shell would be process 1, and would keep the signal to stop from the server.
        raise TemplateError(f"{plan.template.name}: {name} is not a JSON array", hint=f"write {name} with | exec_form")
    return tuple(words)
