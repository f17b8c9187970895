"""A model in a registry: a model image, a ModelPack artifact, or an artifact whose layers are files with titles.

Layers are read in place. The last one is read as a whole when it is listed: `mlimg.manifest` comes first in it, as
mlimg writes it, and the layer's digest proves it. It names the files and their digests, and of the other layers only
the headers are read to find them. Tars of other makers are read once as a whole: nothing else proves that their files
are what the layer's digest says.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from urllib3 import exceptions

from mlimg.runtime.descriptor import DOCKER_CONFIG, OCI_CONFIG, Descriptor
from mlimg.runtime.errors import IntegrityError, LimitError, ModelError, RemoteError, RemoteTemporaryError, printable
from mlimg.runtime.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, ModelManifest
from mlimg.runtime.oci import Registry
from mlimg.runtime.oci.client import Client, expect
from mlimg.runtime.oci.image import choose_platform, is_index, parse_manifest
from mlimg.runtime.oci.transport import Unavailable, bytes_before, read_pieces
from mlimg.runtime.reference import ImageReference, ModelUri
from mlimg.sources.local import MAX_FILES
from mlimg.sources.ranged import Attempt, RangedFile
from mlimg.sources.remote import RemoteEntry, RemoteSource, Wanted, listed
from mlimg.sources.tars import Member, members

if TYPE_CHECKING:
    from mlimg.runtime.oci import Access

# https://github.com/modelpack/model-spec/blob/main/docs/spec.md
_MODELPACK: Final = "application/vnd.cncf.model."
_MODELPACK_PATH: Final = "org.cncf.model.filepath"
_TITLE: Final = "org.opencontainers.image.title"
_UNPACK: Final = "io.deis.oras.content.unpack"  # a folder, which `oras push` packs and gzips
_MODELS: Final = "models/"


def open_address(wanted: Wanted, access: "Access") -> RemoteSource:
    """List the model's files. Raises what `open_remote` raises."""
    reference = ModelUri.parse(wanted.address).image()
    registry = Registry(access)
    with closing(registry):
        descriptor, data = registry.manifest(reference)
        if is_index(descriptor):
            chosen = choose_platform(data, ("linux", "amd64", ""), str(reference))
            descriptor, data = registry.manifest(reference.with_digest(chosen.digest))
        pinned = reference.with_digest(descriptor.digest)
        parts = parse_manifest(data, str(reference))
        blobs = _Blobs(access, pinned)
        if parts.config.media_type in {OCI_CONFIG, DOCKER_CONFIG} or parts.config.media_type.startswith(_MODELPACK):
            entries = _packed(blobs, parts.layers)
        else:
            entries = list(_titled(blobs, parts.layers))
    name = f"oci://{reference.registry}/{reference.repository}" + (f":{reference.tag}" if reference.tag else "")
    return listed(wanted, access, entries, {"uri": name, "revision": descriptor.digest.text})


class _Blobs:
    """The blobs of one repository, read in parts. Safe to use from several threads."""

    def __init__(self, access: "Access", reference: ImageReference) -> None:
        self.access = access
        self.reference = reference
        self.client = Client(access)

    def whole(self, layer: Descriptor) -> RangedFile:
        """A blob as a file; read from start to end, it is checked against its digest."""
        return RangedFile(
            f"{self.reference.name} {layer.digest}",
            layer.size_bytes,
            self.part(layer, 0, layer.size_bytes),
            sha256=layer.digest,
            attempts=self.access.attempts,
            backoff_seconds=self.access.backoff_seconds,
        )

    def part(self, layer: Descriptor, start: int, size_bytes: int) -> Attempt:
        """What reads the part of a blob that is a file."""
        return lambda offset: self._read(layer, start + offset, size_bytes - offset)

    def _read(self, layer: Descriptor, offset: int, size_bytes: int) -> Generator[bytes, None, None]:
        what = f"{self.reference.name} {layer.digest}"
        headers = {"Range": f"bytes={offset}-{offset + size_bytes - 1}"}
        try:
            response = self.client.request(
                self.reference, "GET", f"blobs/{layer.digest}", headers=headers, patient=False
            )
        except Unavailable as failure:
            raise RemoteTemporaryError(str(failure)) from failure
        try:
            expect(response, what, 200, 206)
            before = bytes_before(response, offset)
            if before is None:
                raise RemoteError(f"{self.reference.registry} sends another part of a blob than asked for")
            left = size_bytes
            for piece in read_pieces(response, self.client.stop, skip_bytes=before):
                yield piece[:left]
                left -= min(left, len(piece))
                if not left:
                    break
            if not left and response.status == 206:
                response.drain_conn()
        except exceptions.HTTPError as error:
            raise RemoteTemporaryError(f"{what}: the connection broke while it was read") from error
        finally:
            response.close()


def _titled(blobs: _Blobs, layers: Iterable[Descriptor]) -> Iterator[RemoteEntry]:
    """The files of an artifact: layers with a title are files of that name, others are none."""
    for layer in layers:
        title = layer.annotations.get(_TITLE)
        if title is None:
            continue
        if layer.annotations.get(_UNPACK) == "true":
            raise ModelError(
                f"the layer `{printable(title)[:200]}` is a packed and compressed folder",
                hint="push the files themselves: `oras push REFERENCE folder/file ...`",
            )
        yield _raw(blobs, layer, title)


def _raw(blobs: _Blobs, layer: Descriptor, path: str) -> RemoteEntry:
    read = blobs.part(layer, 0, layer.size_bytes)
    return RemoteEntry(path.removeprefix("./"), layer.size_bytes, read, layer.digest, layer.digest.text)


def _packed(blobs: _Blobs, layers: tuple[Descriptor, ...]) -> list[RemoteEntry]:
    """The files in the layers of an image or a ModelPack artifact."""
    raw = [layer for layer in layers if layer.media_type.startswith(_MODELPACK) and layer.media_type.endswith(".raw")]
    tars = [layer for layer in layers if layer not in raw]
    named = [_raw(blobs, layer, _path_of(layer)) for layer in raw]
    if not tars:
        return named
    last = _proven(blobs, tars[-1])
    if not last or PurePosixPath(last[0].path).name != MANIFEST_NAME:
        return named + _found(blobs, [(layer, _proven(blobs, layer)) for layer in tars[:-1]] + [(tars[-1], last)])
    return named + _named(blobs, tars, last[0])


def _path_of(layer: Descriptor) -> str:
    path = layer.annotations.get(_MODELPACK_PATH) or layer.annotations.get(_TITLE)
    if not path:
        raise ModelError(f"the layer {layer.digest} does not say which file it is")
    return path


def _proven(blobs: _Blobs, layer: Descriptor) -> list[Member]:
    """What a layer holds, after all of it was read and found to be what its digest says."""
    _check_plain(layer)
    found: list[Member] = []
    for member in members(blobs.whole(layer), hashing=True, name=f"layer {layer.digest}"):
        found.append(member)
        if len(found) > MAX_FILES:
            raise LimitError(f"layer {layer.digest} holds more than {MAX_FILES} files", hint="pack data in archives")
    return found


def _named(blobs: _Blobs, layers: list[Descriptor], first: Member) -> list[RemoteEntry]:
    """The files that the manifest names, wherever in the layers they are: the topmost of a name counts."""
    missing = {PurePosixPath(first.path).parent / file.path: file for file in _manifest(blobs, layers[-1], first).files}
    entries: list[RemoteEntry] = []
    for layer in reversed(layers):
        if not missing:
            break
        _check_plain(layer)
        for member in members(blobs.whole(layer), hashing=False, name=f"layer {layer.digest}"):
            file = missing.pop(PurePosixPath(member.path), None)
            if file is None:
                continue
            if file.size_bytes != member.size_bytes:
                raise IntegrityError(
                    f"`{printable(member.path)[:200]}` has another length in its layer than in {MANIFEST_NAME}"
                )
            entry = RemoteEntry(
                str(file.path),
                file.size_bytes,
                blobs.part(layer, member.offset, member.size_bytes),
                file.sha256,
                file.sha256.text,
                executable=member.executable,
            )
            entries.append(entry)
    if missing:
        raise IntegrityError(f"{MANIFEST_NAME} names `{next(iter(missing))}`, which is in no layer")
    return entries


def _manifest(blobs: _Blobs, layer: Descriptor, member: Member) -> ModelManifest:
    if member.size_bytes > MAX_MANIFEST_BYTES:
        raise LimitError(f"`{MANIFEST_NAME}` is larger than {MAX_MANIFEST_BYTES} bytes")
    part = blobs.part(layer, member.offset, member.size_bytes)
    with RangedFile(MANIFEST_NAME, member.size_bytes, part, sha256=member.sha256) as file:
        data = file.readall()
    try:
        return ModelManifest.parse(data)
    except ValueError as error:
        raise IntegrityError(f"`{MANIFEST_NAME}`: {printable(str(error))[:300]}") from error


def _found(blobs: _Blobs, layers: list[tuple[Descriptor, list[Member]]]) -> list[RemoteEntry]:
    """The files of tars without a manifest: all of them, or what is below `models` if all is there."""
    found = {member.path: (layer, member) for layer, held in layers for member in held}
    for path in found:
        if PurePosixPath(path).name.startswith(".wh."):
            raise ModelError(f"`{printable(path)[:200]}` takes a file of an earlier layer away", hint="pack it anew")
    below = all(path.startswith(_MODELS) for path in found)
    return [
        RemoteEntry(
            path.removeprefix(_MODELS) if below else path,
            member.size_bytes,
            blobs.part(layer, member.offset, member.size_bytes),
            member.sha256,
            member.sha256.text if member.sha256 else None,
            executable=member.executable,
        )
        for path, (layer, member) in found.items()
    ]


def _check_plain(layer: Descriptor) -> None:
    """See that a layer can be read in parts. Raises ModelError."""
    if not layer.media_type.endswith(".tar"):
        raise ModelError(
            f"the layer {layer.digest} is no plain tar but {printable(layer.media_type)[:100]}",
            hint="`docker push` compresses layers; mlimg, `oras cp` and `skopeo copy --preserve-digests` keep them",
        )
