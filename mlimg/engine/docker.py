"""The Docker Engine, for everything but the build."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

import docker
from docker.auth import encode_header
from docker.errors import ImageNotFound

from mlimg.append import Image, Layer
from mlimg.engine import wire
from mlimg.engine.border import engine_errors, remote_failed
from mlimg.engine.containers import Container, RunOptions, start
from mlimg.engine.endpoint import ANSWER_SECONDS, find_endpoint, greet
from mlimg.plan import Platform
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import EngineError
from mlimg.runtime.oci import CredentialSource, registry_credentials
from mlimg.runtime.reference import ImageReference

CALL_SECONDS: Final = 120.0

Store = Literal["graph", "containerd"]
OnText = Callable[[str], None]
"""Called with what the engine is doing now."""


@dataclass(frozen=True, slots=True)
class EngineImage:
    """An image in the engine.

    Its `id` is the engine's own: the digest of its config on the graph driver, of its manifest on the containerd
    store. `image.identity` is the same on both.
    """

    id: str
    image: Image
    repo_tags: tuple[str, ...]
    repo_digests: tuple[str, ...]
    size_bytes: int

    @property
    def platform(self) -> Platform:
        """What it runs on."""
        return Platform(self.image.os, self.image.architecture, self.image.variant)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of itself."""

    id: str
    version: str
    api_version: str
    store: Store
    context: str
    endpoint: str
    platform: Platform
    data_root: Path
    is_local: bool

    @property
    def free_bytes(self) -> int | None:
        """Free space where the engine keeps images; None where that cannot be seen from here."""
        with suppress(OSError):
            return shutil.disk_usage(self.data_root).free if self.is_local else None
        return None


class Engine:
    """A Docker Engine that answered. Every call raises EngineError when it fails; others are named."""

    def __init__(
        self, client: docker.APIClient, info: EngineInfo, environ: Mapping[str, str], credentials: CredentialSource
    ) -> None:
        self.client = client
        self.info = info
        self.environ = dict(environ)
        self._credentials = credentials

    @classmethod
    def connect(
        cls,
        environ: Mapping[str, str] = os.environ,
        credentials: CredentialSource | None = None,
        *,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> Self:
        """Find the engine as the `docker` command does, and greet it. Raises EngineError."""
        endpoint = find_endpoint(environ)
        versions, api_version = greet(endpoint, answer_seconds)
        client = endpoint.client(api_version, CALL_SECONDS)
        with engine_errors("describe itself"):
            facts = client.info()
        # https://github.com/moby/moby/blob/v26.1.5/daemon/containerd/service.go: how it names its driver type
        snapshotter = any("io.containerd.snapshotter" in str(pair) for pair in facts.get("DriverStatus") or [])
        info = EngineInfo(
            id=str(facts.get("ID", "")),
            version=str(versions.get("Version", "")),
            api_version=api_version,
            store="containerd" if snapshotter else "graph",
            context=endpoint.context,
            endpoint=str(endpoint),
            platform=_platform(versions, facts),
            data_root=Path(facts.get("DockerRootDir") or "/var/lib/docker"),
            is_local=client.base_url.startswith("http+docker://localhost"),
        )
        return cls(client, info, environ, credentials or registry_credentials(environ))

    def close(self) -> None:
        """Let go of the connections. Only who opens many engines needs to."""
        self.client.close()

    @property
    def store(self) -> Store:
        """Which of Docker's two image stores it has."""
        return self.info.store

    @property
    def context(self) -> str:
        """The name of docker's context, which is also that of its builder."""
        return self.info.context

    @property
    def platform(self) -> Platform:
        """What it runs and builds for by itself."""
        return self.info.platform

    @property
    def version(self) -> str:
        """The engine's version."""
        return self.info.version

    # Images

    def image(self, reference: str) -> EngineImage | None:
        """Look an image up by name or ID."""
        with engine_errors(f"look up {reference}"):
            try:
                found = self.client.inspect_image(reference)  # type: ignore[no-untyped-call]
            except ImageNotFound:
                return None
            return _parse_image(found)

    def images_by_label(self, label: str, *, untagged_only: bool = False) -> tuple[EngineImage, ...]:
        """The images that have a label (``name`` or ``name=value``)."""
        filters = {"label": label} | ({"dangling": "true"} if untagged_only else {})
        return self._listed(filters=filters)

    def images_by_name(self, pattern: str) -> tuple[EngineImage, ...]:
        """The images that have a name like `pattern`, such as ``mlimg.local/build:*``."""
        return self._listed(filters={"reference": pattern})

    def _listed(self, filters: Mapping[str, str]) -> tuple[EngineImage, ...]:
        with engine_errors("list images"):
            found = {item["Id"] for item in self.client.images(filters=dict(filters))}
        return tuple(image for image in map(self.image, sorted(found)) if image)

    def tag(self, image_id: str, reference: str) -> None:
        """Give an image a name, which moves if another image has it."""
        name, tag = _name_and_tag(reference)
        with engine_errors(f"tag {image_id} as {reference}"):
            self.client.tag(image_id, name, tag)

    def untag(self, reference: str) -> None:
        """Take a name away, and with its last name the image. Does nothing where there is no such name."""
        self._remove(reference)

    def remove(self, image_id: str) -> None:
        """Remove an image that nothing uses. Does nothing where there is none."""
        self._remove(image_id)

    def _remove(self, reference: str) -> None:
        with engine_errors(f"remove {reference}"), suppress(ImageNotFound):
            self.client.remove_image(reference)

    # Registries, through the engine

    def pull(self, reference: str, platform: Platform | None = None, on_text: OnText | None = None) -> EngineImage:
        """Have the engine fetch an image. Raises CredentialsError, IntegrityError and remote errors."""
        parsed = ImageReference.parse(reference)
        doing = f"pull {reference}" + (f" for {platform}" if platform else "")
        params = {"fromImage": parsed.name, "tag": str(parsed.digest or parsed.tag or "latest")}
        if platform:
            params["platform"] = str(platform)
        with self._remote(doing, "/images/create", params, parsed) as answers:
            _follow(answers, doing, on_text)
        image = self.image(str(parsed.with_digest(parsed.digest) if parsed.digest else parsed))
        if image is None:
            raise EngineError(f"the engine says that it pulled {reference}, but does not have it")
        return image

    def push(self, reference: str, on_text: OnText | None = None) -> Digest:
        """Have the engine push an image; return the manifest's digest. Raises as `pull` does."""
        parsed = ImageReference.parse(reference)
        doing = f"push {reference}"
        name, tag = _name_and_tag(reference)
        with self._remote(doing, f"/images/{name}/push", {"tag": tag}, parsed) as answers:
            digest = _follow(answers, doing, on_text)
        if digest is None and (image := self.image(reference)):
            # The containerd store does not tell it in the stream. An image with two tags of one name has it twice.
            known = {text.partition("@")[2] for text in image.repo_digests if text.startswith(f"{name}@")}
            digest = known.pop() if len(known) == 1 else None
        if digest is None:
            raise EngineError(f"the engine pushed {reference} and does not tell the digest")
        return Digest.parse(digest)

    @contextmanager
    def _remote(
        self, doing: str, path: str, params: Mapping[str, str], reference: ImageReference
    ) -> Iterator[Iterable[wire.Message]]:
        headers = {"X-Registry-Auth": encode_header(self._auth(reference.registry)).decode()}
        with (
            engine_errors(doing, remote_failed),
            wire.call(self.client, "POST", path, params=params, headers=headers) as response,
        ):
            yield wire.messages(response)

    def _auth(self, registry: str) -> dict[str, str]:
        found = self._credentials(registry)
        if found is None:
            return {}
        if found.identity_token:
            return {"identitytoken": found.identity_token, "serveraddress": registry}
        return {"username": found.username, "password": found.password, "serveraddress": registry}

    # Containers

    def run_container(self, options: RunOptions) -> Container:
        """Start a container."""
        return start(self.client, options)


def _follow(answers: Iterable[wire.Message], doing: str, on_text: OnText | None) -> str | None:
    """Read a pull or push to its end; return the digest where the engine tells one."""
    digest = None
    for message in answers:
        if words := wire.refusal(message):
            raise remote_failed(doing, words)
        aux = message.get("aux")
        if isinstance(aux, dict) and isinstance(aux.get("Digest"), str):
            digest = aux["Digest"]
        status, layer = message.get("status"), message.get("id")
        if on_text and isinstance(status, str):
            on_text(f"{layer}: {status}" if layer else status)
    return digest


def _parse_image(value: Mapping[str, Any]) -> EngineImage:
    layers = [Layer(Digest.parse(text)) for text in value["RootFS"].get("Layers") or []]
    image = Image.of(
        os=value["Os"],
        architecture=value["Architecture"],
        variant=value.get("Variant") or "",
        settings=value.get("Config") or {},
        layers=layers,
    )
    return EngineImage(
        value["Id"],
        image,
        tuple(value.get("RepoTags") or ()),
        tuple(value.get("RepoDigests") or ()),
        int(value.get("Size") or 0),
    )


def _name_and_tag(reference: str) -> tuple[str, str]:
    parsed = ImageReference.parse(reference)
    return parsed.name, parsed.tag or "latest"


def _platform(versions: Mapping[str, Any], facts: Mapping[str, Any]) -> Platform:
    architecture = str(versions.get("Arch", ""))
    # A 32-bit engine may run on a 64-bit kernel, which names the machine aarch64.
    variant = {"armv6l": "v6"}.get(str(facts.get("Architecture")), "v7") if architecture == "arm" else ""
    return Platform(str(versions.get("Os", "linux")), architecture, variant)
