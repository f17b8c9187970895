"""An OCI layout goes on into a registry: conflicts first, then blobs, manifests, and the tags last.

The rules are those of a release (`docs/architecture.md`): a published version never becomes another, the mission's
tag follows the newest server, and what is there already is a success that moves nothing.
"""

from collections.abc import Container, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Literal

from mlimg.contents import Contents, Kind, RegistryReader, read_contents
from mlimg.layout import FULL_NAME, Layout, LayoutEntry
from mlimg.report import Reporter
from mlimg.runtime.descriptor import Blob, Descriptor, MemoryBlob, StoredBlob
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import ConflictError, IntegrityError, UsageError, printable, telling
from mlimg.runtime.oci import Access, Journal, Registry, push_blobs, send_and_name
from mlimg.runtime.oci.image import is_index, parse_manifest, parse_object
from mlimg.runtime.oci.preflight import check_limits
from mlimg.runtime.oci.upload import PushedBlob
from mlimg.runtime.reference import ImageReference

# Models before the images that name them; what moves comes last.
_ORDER: dict[Kind, int] = {"server image": 0, "model image": 1, "ModelPack artifact": 2, "in-image image": 4}
_OTHERS = 3
_MISSION = 5

How = Literal["pushed", "tagged", "unchanged"]


@dataclass(frozen=True, slots=True)
class Destination:
    """A registry, and a prefix before the repositories there."""

    registry: str
    prefix: str = ""

    @classmethod
    def parse(cls, text: str) -> "Destination":
        """Read ``registry[/prefix]``. Raises ValueError."""
        text = text.removeprefix("oci://").rstrip("/")
        registry, _, prefix = text.partition("/")
        reference = ImageReference.parse(f"{text}/name")
        if reference.registry != registry:
            raise ValueError(f"{registry!r} is no registry's host: it has neither a dot nor a port")
        return cls(registry, prefix)

    def place(self, name: ImageReference) -> ImageReference:
        """Where an image goes: its own repository, below the prefix. What Docker Hub calls ``library/`` is no part."""
        own = name.repository
        if name.registry == "docker.io":
            own = own.removeprefix("library/")
        return replace(name, registry=self.registry, repository=f"{self.prefix}/{own}".strip("/"), digest=None)


@dataclass(frozen=True, slots=True)
class CarriedImage:
    """An image or artifact that the registry has now."""

    reference: ImageReference  # with the manifest's digest
    kind: Kind
    how: How


@dataclass(frozen=True, slots=True)
class Carried:
    """What became of a layout."""

    images: tuple[CarriedImage, ...]
    moved_bytes: int


@dataclass(slots=True)
class _Item:
    """An entry of the layout on its way."""

    entry: LayoutEntry
    target: ImageReference
    contents: Contents
    manifests: tuple[tuple[Descriptor, bytes], ...]  # those that an index lists, then the entry's own
    blobs: tuple[StoredBlob | MemoryBlob, ...]
    published: Descriptor | None = None  # what takes the place of the layout's own: the same release, published before
    current: Digest | None = None  # what the tag stands for now
    keeps: bool = field(default=False)  # whether the tag is to stay as it is

    @property
    def manifest(self) -> Descriptor:
        return self.entry.descriptor

    @property
    def is_mission(self) -> bool:
        """Whether the tag names the model alone, and so follows the newest server."""
        model = self.contents.model
        return self.contents.kind == "in-image image" and model is not None and self.target.tag == model.version

    @property
    def order(self) -> int:
        return _MISSION if self.is_mission else _ORDER.get(self.contents.kind, _OTHERS)


def carry(
    layout: Layout, to: Destination, access: Access, report: Reporter, *, journal: Journal | None = None
) -> Carried:
    """Bring every named image and artifact of `layout` into a registry.

    Every blob is checked while it is sent; what the registry has is not sent. Raises ConflictError, before a byte
    moves, when a tag that never moves stands for something else; IntegrityError when the layout is not whole;
    UsageError when it names nothing, and what a registry raises.
    """
    items = sorted(_read(layout, to, report), key=lambda item: item.order)
    if not items:
        raise UsageError(f"{layout.folder} names no images", hint="`mlimg build --output oci:DIR` writes some into it")
    done: list[CarriedImage] = []
    news = (str(image.reference) for image in done if image.how != "unchanged")
    with closing(Registry(access)) as registry, telling(news):
        for item in items:
            _look(registry, item, items)
        moved_bytes = _send(registry, access, [item for item in items if not item.keeps], report, journal)
        done.extend(_tag(registry, item, items) for item in items)
    return Carried(tuple(done), moved_bytes)


# The layout


def _read(layout: Layout, to: Destination, report: Reporter) -> Iterator[_Item]:
    for entry in layout.entries():
        if not entry.name:
            report.note(f"{entry.descriptor.digest} has no name in {layout.folder}: it stays there")
            continue
        name = _name(entry, layout)
        contents = read_contents(layout, entry.descriptor, entry.name)
        manifests = tuple(_manifests(layout, entry.descriptor, entry.name, set()))
        blobs: dict[Digest, StoredBlob | MemoryBlob] = {}
        for descriptor, data in manifests:
            if not is_index(descriptor):
                for blob in _blobs(layout, data, entry.name):
                    blobs.setdefault(blob.digest, blob)
        yield _Item(entry, to.place(name), contents, manifests, tuple(blobs.values()))


def _name(entry: LayoutEntry, layout: Layout) -> ImageReference:
    text = entry.descriptor.annotations.get(FULL_NAME, entry.name)
    try:
        name = ImageReference.parse(text)
        if name.tag is None:
            raise ValueError("it has no tag")
    except ValueError as error:
        raise UsageError(
            f"{layout.folder} names an image `{printable(text)[:200]}`: {printable(str(error))[:200]}",
            hint="`mlimg build --output oci:DIR` writes layouts with whole names",
        ) from error
    return name


def _manifests(
    layout: Layout, descriptor: Descriptor, what: str, seen: set[Digest], depth: int = 0
) -> Iterator[tuple[Descriptor, bytes]]:
    """The manifests that an index lists, each once, then its own."""
    seen.add(descriptor.digest)
    data = layout.document(descriptor)
    if is_index(descriptor):
        listed = parse_object(data, what).get("manifests")
        if depth > 1 or not isinstance(listed, list):
            raise IntegrityError(f"{what} is not an index, or one of indexes of indexes")
        for item in listed:
            try:
                child = Descriptor.parse(item)
            except ValueError as error:
                raise IntegrityError(f"{what}: {printable(str(error))[:200]}") from error
            if child.digest not in seen:
                yield from _manifests(layout, child, what, seen, depth + 1)
    yield descriptor, data


def _blobs(layout: Layout, manifest: bytes, what: str) -> Iterator[StoredBlob | MemoryBlob]:
    parts = parse_manifest(manifest, what)
    for layer in parts.layers:
        yield layout.blob(layer)
    yield MemoryBlob(layout.document(parts.config))


# The registry


def _look(registry: Registry, item: _Item, items: Sequence[_Item]) -> None:
    """Decide what becomes of a tag. Raises ConflictError."""
    found = registry.resolve(item.target)
    item.current = found.digest if found else None
    fixed = next((other for other in items if other.published and other.manifest.digest == item.manifest.digest), None)
    if fixed is not None and item.is_mission and fixed.target.name == item.target.name:
        item.published, item.keeps = fixed.published, True
    if found is None:
        return
    if found.digest == item.manifest.digest:
        item.keeps = True
        return
    theirs = read_contents(RegistryReader(registry, item.target), found, str(item.target))
    why, hint = _difference(item.contents, theirs)
    if not why:
        if not item.is_mission:
            item.published, item.keeps = found, True
        return
    if not (item.is_mission and _same_model(item.contents, theirs)):
        raise ConflictError(f"{item.target} is published with {why}", hint=hint)


def _difference(ours: Contents, theirs: Contents) -> tuple[str, str]:
    """What makes two images another release, and what to do; nothing where they are the same one."""
    if ours.kind != theirs.kind or ours.kind in {"image", "artifact"}:
        return f"something else: {theirs.kind} {theirs.manifest.digest}", "name another registry or prefix"
    if (ours.model or theirs.model) and not _same_model(ours, theirs):
        told = theirs.model.digest if theirs.model else "none"
        return f"another model ({told})", "raise model.version: a published version never changes"
    if ours.server and theirs.server and ours.server.inputs != theirs.server.inputs:
        return f"another server ({theirs.server.inputs})", "raise server.version"
    return "", ""


def _same_model(ours: Contents, theirs: Contents) -> bool:
    """An in-image image is compared by the model's files, an artifact by its whole manifest file."""
    if ours.model is None or theirs.model is None:
        return False
    if ours.kind == "in-image image":
        return ours.model.digest == theirs.model.digest
    return ours.model.manifest_digest is not None and ours.model.manifest_digest == theirs.model.manifest_digest


def _send(registry: Registry, access: Access, items: Sequence[_Item], report: Reporter, journal: Journal | None) -> int:
    """Blobs, each once, mounted where another repository has got it just now; then manifests by their digests."""
    for item in items:
        check_limits(item.target, item.blobs)
    repositories: dict[str, dict[Digest, Blob]] = {}
    for item in items:
        repositories.setdefault(item.target.repository, {}).update({blob.digest: blob for blob in item.blobs})

    def send(*, anew: Container[Digest]) -> list[PushedBlob]:
        pushed: list[PushedBlob] = []
        where: dict[Digest, str] = {}
        for repository, blobs in repositories.items():
            target = next(item.target for item in items if item.target.repository == repository)
            with report.step(f"push {target.name}", sum(blob.size_bytes for blob in blobs.values())) as step:
                for source in (None, *dict.fromkeys(where[digest] for digest in blobs if digest in where)):
                    pushed += push_blobs(
                        access,
                        target,
                        [blob for digest, blob in blobs.items() if where.get(digest) == source],
                        mount_from=(source,) if source else (),
                        on_bytes=step.advance,
                        on_note=report.note,
                        journal=journal,
                        anew=anew,
                    )
            where |= {digest: where.get(digest, repository) for digest in blobs}
        return pushed

    def name() -> None:
        for item in items:
            for descriptor, data in item.manifests:
                pinned = replace(item.target, tag=None, digest=descriptor.digest)
                registry.push_manifest(pinned, data, descriptor.media_type)

    _, pushed = send_and_name(send, name, on_note=report.note)
    return sum(blob.sent_bytes for blob in pushed)


def _tag(registry: Registry, item: _Item, items: Sequence[_Item]) -> CarriedImage:
    manifest = item.published or item.manifest
    pinned = item.target.with_digest(manifest.digest)
    if item.current == manifest.digest:
        return CarriedImage(pinned, item.contents.kind, "unchanged")
    # Registries have no compare-and-swap on tags: looking again just before narrows what a race can do.
    found = registry.resolve(item.target)
    if (found.digest if found else None) != item.current:
        _look(registry, item, items)
        manifest = item.published or item.manifest
        pinned = item.target.with_digest(manifest.digest)
        if item.current == manifest.digest:
            return CarriedImage(pinned, item.contents.kind, "unchanged")
    descriptor, data = registry.manifest(replace(pinned, tag=None))
    registry.push_manifest(item.target, data, descriptor.media_type)
    return CarriedImage(pinned, item.contents.kind, "tagged" if item.keeps else "pushed")
