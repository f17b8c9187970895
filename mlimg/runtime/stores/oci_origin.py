"""Models fetched from a registry: layers that hold one large file are read in ranges, straight into its place.

Such a layer is what mlimg writes for a file: its header, its bytes, zeros. Header and zeros are compared with what they
must be, and the file with its sha256 in `mlimg.manifest`, which lies in the last layer, whose digest the image's
manifest gives, whose digest is that of the URI. So each byte is hashed once, and a layer is believed no more than when
it is hashed as a whole. Any other layer (bundles, what somebody compressed or packed anew on the way) comes in one
stream and is hashed as a whole (`oci_bundle`).
"""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from threading import Event
from typing import Final

from urllib3 import exceptions
from urllib3.response import BaseHTTPResponse

from mlimg.runtime.descriptor import Descriptor
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import IntegrityError, ModelError, RemoteError, RemoteTemporaryError, Stopped, printable
from mlimg.runtime.layer_tar import single_head, single_size_bytes
from mlimg.runtime.manifest import ModelFile
from mlimg.runtime.oci import Access, Registry
from mlimg.runtime.oci.client import Client, expect
from mlimg.runtime.oci.transport import Unavailable, read_pieces
from mlimg.runtime.origin import RangesIgnoredError, RemoteFile, RemoteModel
from mlimg.runtime.proof import ImageProof, check_label
from mlimg.runtime.reference import SERVER_INPUTS_LABEL, ImageReference, ModelUri
from mlimg.runtime.stores.oci_bundle import Bundle, with_files
from mlimg.runtime.unpack import KnownModel, peek_manifest

RANGE_STALL_SECONDS: Final = 15.0  # for a range's next byte: another connection is asked sooner than one would wait
_WORTH_RANGES_BYTES: Final = 8 * 1024 * 1024
_HELD_BYTES: Final = 1024 * 1024  # a last layer of that size is read once, and kept until it is unpacked
_LOOKS_AT_ONCE: Final = 8


class OciOrigin:
    """Every registry, as a place that models are fetched from."""

    def __init__(self, access: Access, stop: Event) -> None:
        self._stop = stop
        self._registry = Registry(access, stop)
        self._patient = Client(access, stop)
        quick = replace(access, attempts=1, stall_seconds=min(access.stall_seconds, RANGE_STALL_SECONDS))
        self._quick = Client(quick, stop)

    def close(self) -> None:
        """Close idle connections."""
        for connections in (self._registry, self._patient, self._quick):
            connections.close()

    def resolve(self, uri: ModelUri) -> ModelUri:
        """Pin a URI to what its tag stands for now."""
        found = self._registry.resolve(uri.image())
        if found is None:
            raise RemoteError(f"{uri} does not exist", hint="check the model's name and version")
        return uri.pinned(found.digest)

    def open(self, uri: ModelUri) -> RemoteModel:
        """Read the image's manifest and config, the model's manifest, and the headers of its large layers."""
        reference = uri.image()
        image = self._registry.image(reference)
        if not image.layers:
            raise ModelError(f"{uri} is no model: it has no layers")
        if SERVER_INPUTS_LABEL in image.labels:
            raise ModelError(f"{uri} is no model: it is an image with a server", hint="name the model's own image")
        *others, last = image.layers
        held: bytes | None = None
        if last.size_bytes <= _HELD_BYTES:
            held = b"".join(self._registry.open_blob(reference, last))
        known = peek_manifest(
            self._registry.open_blob(reference, last, only_start=True) if held is None else iter([held])
        )
        check_label(image, known.manifest, str(uri))
        others = list({layer.digest: layer for layer in others}.values())
        in_ranges = self._in_ranges(reference, known, others)
        files = tuple(in_ranges.values())
        bundles = [Bundle(self._registry, reference, layer, known) for layer in others if layer.digest not in in_ranges]
        bundles.append(Bundle(self._registry, reference, last, known, has_manifest=True, held=held))
        return RemoteModel(
            known.manifest,
            known.manifest_bytes,
            files,
            with_files(bundles, {remote.file for remote in files}),
            ImageProof(image.manifest_bytes, image.config_bytes),
        )

    def _in_ranges(
        self, reference: ImageReference, known: KnownModel, layers: Sequence[Descriptor]
    ) -> dict[Digest, RemoteFile]:
        """The layers that hold one large file each, as mlimg packs it."""
        # Layers are in the order of the files' paths, so that files of one length find their own.
        left = [file for file in known.manifest.files if file.size_bytes >= _WORTH_RANGES_BYTES]
        guesses: list[_RangedLayer] = []
        for layer in layers:
            file = next((file for file in left if _alone_bytes(known.root, file) == layer.size_bytes), None)
            if file is not None:
                left.remove(file)
                head = single_head(known.root / file.path, file.size_bytes, executable=False)
                guesses.append(_RangedLayer(self._quick, self._stop, reference, layer, file, len(head)))
        if not guesses:
            return {}
        with ThreadPoolExecutor(_LOOKS_AT_ONCE, thread_name_prefix="look") as threads:
            looked = threads.map(lambda guess: guess.looked_at(self._patient, known.root), guesses)
            return {found.layer.digest: found for found in looked if found is not None}


def _alone_bytes(root: PurePosixPath, file: ModelFile) -> int:
    return single_size_bytes(root / file.path, file.size_bytes)


@dataclass(frozen=True, slots=True)
class _RangedLayer:
    """A `RemoteFile`: the bytes of one file in the middle of its layer."""

    client: Client
    stop: Event
    reference: ImageReference
    layer: Descriptor
    file: ModelFile
    head_bytes: int
    executable: bool = False

    def looked_at(self, client: Client, root: PurePosixPath) -> "_RangedLayer | None":
        """The same when the layer is what mlimg writes, None when it is not or its place has no ranges."""
        tail = self.head_bytes + self.file.size_bytes
        try:
            head = self._small(client, 0, self.head_bytes)
            zeros = self._small(client, tail, self.layer.size_bytes - tail)
        except RangesIgnoredError:
            return None
        if any(zeros):
            return None
        for executable in (False, True):
            if head == single_head(root / self.file.path, self.file.size_bytes, executable=executable):
                return replace(self, executable=executable)
        return None

    def read(self, offset: int, size_bytes: int) -> Iterator[bytes]:
        """The file's bytes from `offset` on, in one attempt."""
        try:
            yield from self._pieces(self.client, self.head_bytes + offset, size_bytes)
        except Unavailable as failure:
            # A server that says when to come back is not asked before.
            if self.stop.wait(min(failure.retry_after_seconds or 0, RANGE_STALL_SECONDS)):
                raise Stopped from failure
            raise RemoteTemporaryError(str(failure)) from failure

    def _small(self, client: Client, offset: int, size_bytes: int) -> bytes:
        return client.patience().run(lambda: b"".join(self._pieces(client, offset, size_bytes)))

    def _pieces(self, client: Client, offset: int, size_bytes: int) -> Generator[bytes, None, None]:
        """Some of the layer's bytes. Raises Unavailable."""
        headers = {"Range": f"bytes={offset}-{offset + size_bytes - 1}"}
        path = f"blobs/{self.layer.digest}"
        response = client.request(self.reference, "GET", path, headers=headers, patient=False)
        try:
            left, before = size_bytes, self._check(response, offset, size_bytes)
            for piece in read_pieces(response, client.stop, skip_bytes=before):
                if left:
                    yield piece[:left]
                left -= min(left, len(piece))
                if not left and response.status == 200:
                    return  # the rest of the layer is not wanted
            if left:
                raise Unavailable(f"{self.reference.name}: a range came cut short")
            response.release_conn()
        except exceptions.HTTPError as error:
            raise Unavailable(f"{self.reference.name}: the connection broke while a range was read") from error
        finally:
            response.close()

    def _check(self, response: BaseHTTPResponse, offset: int, size_bytes: int) -> int:
        """How many bytes come before those that were asked for."""
        what = f"{self.reference.name} {self.layer.digest}"
        if response.status == 416:
            raise IntegrityError(f"{what} is shorter than {self.layer.size_bytes} bytes")
        expect(response, what, 200, 206)
        if response.status == 200:
            if offset > self.head_bytes:
                raise RangesIgnoredError(f"{self.reference.registry} sends a whole blob when asked for a part of it")
            return offset
        part, _, total = response.headers.get("Content-Range", "").partition("/")
        if part != f"bytes {offset}-{offset + size_bytes - 1}":
            if total.isascii() and total.isdigit() and int(total[:19]) < self.layer.size_bytes:
                raise IntegrityError(f"{what} has {total} bytes instead of {self.layer.size_bytes}")
            raise RemoteError(f"{self.reference.registry} sends another part of a blob than asked for")
        if total not in {"*", str(self.layer.size_bytes)}:
            raise IntegrityError(f"{what} has {printable(total[:20])} bytes instead of {self.layer.size_bytes}")
        return 0
