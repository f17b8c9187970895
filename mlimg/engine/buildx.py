"""Building the server image: `docker buildx build` on the engine's own builder, checked afterwards.

Nothing is believed of what the builder prints. The image is built under a name of its own, found by the metadata file,
compared with what the plan sets and with the base it was to stand on, and only then given its tags.
"""

import json
import os
import secrets as random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlimg.engine import command
from mlimg.engine.base import PRIVATE_REGISTRY
from mlimg.engine.border import engine_failed, remote_failed, shown
from mlimg.engine.docker import Engine, EngineImage
from mlimg.engine.progress import LOG_LINES, BuildProgress
from mlimg.engine.redact import Redactor
from mlimg.plan import BaseImage, Platform
from mlimg.report import Step
from mlimg.runtime.errors import EngineError, MlimgError
from mlimg.temporary import temporary_folder

if TYPE_CHECKING:
    from mlimg.render import Context, ExpectedConfig

BUILD_REPOSITORY: Final = f"{PRIVATE_REGISTRY}/build"
_STEP_START_SECONDS: Final = 0.8
_ANSWER_BYTES: Final = 16 * 1024  # ten times what the builder writes about an image
_BASE_STEP: Final = "[internal] load metadata for "
STALL_SECONDS: Final = 900.0  # a compiler, or the download of a wheel of gigabytes, is silent for minutes
_HOW_TO_GET_BUILDX: Final = (
    "install it: `sudo apt-get install docker-buildx` on Debian and Ubuntu (docker-buildx-plugin from Docker's own "
    "packages); Docker Desktop has it"
)


def version(environ: Mapping[str, str]) -> str:
    """The version of buildx. Raises EngineError with the way to get it when there is none."""
    try:
        done = command.run(["docker", "buildx", "version"], env=environ, timeout_seconds=20)
    except command.CommandFailed as error:
        if error.status is None and error.tail == ():
            raise EngineError(f"the docker command {error.reason}", hint="install Docker's command line") from error
        raise EngineError("the docker command has no buildx", hint=_HOW_TO_GET_BUILDX, log=error.tail) from error
    return next(iter(done.tail), "unknown")


def build(
    engine: Engine,
    context: "Context",
    *,
    platform: Platform,
    base: BaseImage,
    secrets: Mapping[str, Path],
    ca_bundle: Path | None,
    tags: Sequence[str],
    report: Step,
    timeout_seconds: float,
    stall_seconds: float = STALL_SECONDS,
    no_cache: bool = False,
) -> EngineImage:
    """Build a server image, check it, and give it the tags.

    Raises EngineError, with the failed step's last lines, for a failed or hanging build and for an image that is not
    what was asked for; a remote error or CredentialsError when the base cannot be fetched; LocalIOError where there is
    no room for the builder's answer. No tag is left behind then.
    """
    version(engine.environ)
    watch = _Watch(Redactor.of_files(secrets.values()), report)
    files = dict(secrets) | ({"ca_bundle": ca_bundle} if ca_bundle else {})
    temporary = f"{BUILD_REPOSITORY}:{random.token_hex(8)}"
    try:
        with temporary_folder("mlimg-build-", _ANSWER_BYTES) as folder:
            order = _Order(engine.context, platform, base, files, temporary, folder / "metadata.json", no_cache)
            limits = _Limits(timeout_seconds, stall_seconds)
            _run(_environment(engine.environ, folder), order, context.tar(), watch, limits)
            image_id = _image_id(order.metadata)
        image = engine.image(image_id)
        if image is None:
            raise EngineError(f"the builder reports image {image_id}, and the engine does not have it")
        _check(image, context.expected, base)
        for tag in tags:
            engine.tag(image_id, tag)
    except BaseException:
        with suppress(EngineError):  # the first failure is the one to tell
            engine.untag(temporary)
        raise
    engine.untag(temporary)
    # Looked up anew: the names have changed.
    return engine.image(image_id) or image


@dataclass(frozen=True, slots=True)
class _Order:
    """What the builder is told."""

    builder: str
    platform: Platform
    base: BaseImage
    secrets: Mapping[str, Path]
    tag: str
    metadata: Path
    no_cache: bool

    def argv(self) -> list[str]:
        argv = ["docker", "buildx", "build"]
        # The context's own builder, whatever `docker buildx use` says: its images are the engine's.
        argv += ["--builder", self.builder, "--load", "--provenance=false", "--sbom=false", "--progress=plain"]
        argv += ["--metadata-file", str(self.metadata), "--tag", self.tag]
        argv += ["--platform", str(self.platform), "--build-arg", "SOURCE_DATE_EPOCH=0"]
        if self.base.build_context:
            argv += ["--build-context", f"{self.base.pinned}=docker-image://{self.base.build_context}"]
        for name, path in sorted(self.secrets.items()):
            # The path only: arguments can be read by every user of the machine. Quoted as CSV, for commas.
            source = f"src={path}".replace('"', '""')
            argv += ["--secret", f'id={name},"{source}"']
        return [*argv, *(["--no-cache"] if self.no_cache else []), "-"]


@dataclass(frozen=True, slots=True)
class _Limits:
    """How long a build may take, and be silent."""

    timeout_seconds: float
    stall_seconds: float


class _Watch:
    """Follows a build: tells its steps, and why it failed. Secrets stop here."""

    def __init__(self, redact: Redactor, report: Step) -> None:
        self._redact = redact
        self._report = report
        self._progress = BuildProgress()
        self._step_began = time.monotonic()

    def __call__(self, line: str) -> None:
        progress = self._progress
        if progress.read(self._redact(line)) and progress.step:
            self._step_began = time.monotonic()
            self._report.update(progress.step.title)

    def settled(self) -> bool:
        """Whether the build can be cancelled for good.

        Engines before 27.2 leave a step's process running when they are told to stop while it starts.
        https://github.com/moby/buildkit/pull/5106
        """
        return time.monotonic() - self._step_began >= _STEP_START_SECONDS

    def explain(self, error: command.CommandFailed) -> MlimgError:
        """The step that failed, or the one under way at the time-out, or the builder's own last word."""
        if error.status is None or error.status < 0:
            step = self._progress.step
            return EngineError(
                f"the build {error.reason}" + (f", in step {shown(step.title)}" if step else ""),
                hint="it was cancelled; nothing was tagged",
                log=tuple(step.log) if step else (),
            )
        failed = self._progress.failed
        if failed is None:
            log = tuple(map(self._redact, error.tail))[-LOG_LINES:]
            return engine_failed("build the image", self._progress.summary or (log or ("no word of why",))[-1], log=log)
        if failed.title.startswith(_BASE_STEP):
            return remote_failed(f"fetch {failed.title.removeprefix(_BASE_STEP)}", failed.error)
        doing = f"build the image: step {shown(failed.title)}"
        return engine_failed(doing, failed.error, log=tuple(failed.log))


def _environment(environ: Mapping[str, str], folder: Path) -> Mapping[str, str]:
    """The builder's environment: where it cannot keep notes of its builds, which it insists on, `folder` has them."""
    home = environ.get("DOCKER_CONFIG") or Path(environ.get("HOME") or Path.home(), ".docker")
    notes = Path(environ.get("BUILDX_CONFIG") or Path(home, "buildx"))
    with suppress(OSError):
        notes.mkdir(parents=True, exist_ok=True)
        if os.access(notes, os.W_OK):
            return environ
    return {**environ, "BUILDX_CONFIG": str(folder)}


def _run(environ: Mapping[str, str], order: _Order, tar: bytes, watch: _Watch, limits: _Limits) -> None:
    try:
        command.run(
            order.argv(),
            stdin=tar,
            env=environ,
            timeout_seconds=limits.timeout_seconds,
            stall_seconds=limits.stall_seconds,
            on_line=watch,
            settled=watch.settled,
        )
    except command.CommandFailed as error:
        raise watch.explain(error) from error


def _image_id(metadata: Path) -> str:
    """The engine's ID of what was built, the same field on both image stores."""
    try:
        value = json.loads(metadata.read_bytes())["containerimage.digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError("the builder does not say which image it built", hint="update buildx") from error
    return str(value)


def _check(image: EngineImage, expected: "ExpectedConfig", base: BaseImage) -> None:
    """Compare the image with the plan. Raises EngineError naming every difference."""
    differences = list(_differences(image, expected))
    if image.image.diff_ids[: len(base.diff_ids)] != base.diff_ids:
        differences.append(f"its lowest layers are not those of {base.written}")
    elif len(image.image.diff_ids) == len(base.diff_ids):
        differences.append("it adds no layer to its base")
    if differences:
        raise EngineError(
            "the image that was built is not what was asked for: " + "; ".join(differences),
            hint="the template's Dockerfile swallows or overrides what the plan sets",
        )


def _differences(image: EngineImage, expected: "ExpectedConfig") -> Iterator[str]:
    settings = image.image.settings
    if expected.user and settings.get("User") != expected.user:
        yield f"User is {shown(str(settings.get('User', '')))!r}, not {expected.user!r}"
    for key, wanted in (("Entrypoint", expected.entrypoint), ("Cmd", expected.cmd)):
        if wanted and tuple(settings.get(key, ())) != tuple(wanted):
            yield f"{key} is {shown(str(settings.get(key, [])))}, not {list(wanted)}"
    env = dict(text.partition("=")[::2] for text in settings.get("Env", ()))
    for name, wanted_value in expected.env.items():
        if env.get(name) != wanted_value:
            yield f"Env {name} is {'not set' if name not in env else 'another value'}"
    for name, wanted_value in expected.labels.items():
        if image.image.labels.get(name) != wanted_value:
            yield f"label {name} is {'not set' if name not in image.image.labels else 'another value'}"
    for port in expected.exposed_ports:
        if port not in settings.get("ExposedPorts", {}):
            yield f"port {port} is not exposed"
