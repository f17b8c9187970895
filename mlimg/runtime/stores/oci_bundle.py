"""Layers of several small files: each comes in one stream, or is proven by files that are here already.

Which files a bundle should hold follows from their order and its length (`docs/model-artifact.md`). Where all of them
are here, its tar is made of them once more and held against its digest, which the image's manifest gives: that proves
contents, modes and the model's manifest as well as reading it does.
"""

import hashlib
import os
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

from mlimg.runtime.descriptor import Descriptor, OnBytes
from mlimg.runtime.digest import READ_SIZE_BYTES
from mlimg.runtime.errors import IntegrityError, Stopped
from mlimg.runtime.layer_tar import END_OF_ARCHIVE, entry_heads, padding_bytes
from mlimg.runtime.manifest import MANIFEST_NAME, ModelFile
from mlimg.runtime.oci import Registry
from mlimg.runtime.reference import ImageReference
from mlimg.runtime.unpack import KnownModel, unpack
from mlimg.runtime.version_folder import files_below


@dataclass(frozen=True, slots=True)
class Bundle:
    """A `RemoteBundle`: a layer that is read as a whole."""

    registry: Registry
    reference: ImageReference
    layer: Descriptor
    known: KnownModel
    has_manifest: bool = False
    held: bytes | None = None
    files: tuple[ModelFile, ...] | None = None

    @property
    def name(self) -> str:
        """The layer's digest."""
        return self.layer.digest.hex

    @property
    def size_bytes(self) -> int:
        """The layer's length."""
        return self.layer.size_bytes

    def is_whole(self, folder: Path, stop: Event) -> bool:
        """Whether the files below `folder` make the very layer. Raises Stopped."""
        sha256 = hashlib.sha256()
        try:
            if self.files is None or not folder.is_dir():
                return False
            if set(files_below(folder)) != {file.path for file in self.files}:
                return False
            for piece in self._made_of(self.files, folder):
                sha256.update(piece)
                if stop.is_set():
                    raise Stopped
        except OSError:
            return False
        return sha256.hexdigest() == self.layer.digest.hex

    def unpack(self, folder: Path, on_bytes: OnBytes) -> None:
        """Write the files below `folder`, and check that the whole layer is what its digest says."""
        found = unpack(self._pieces(on_bytes), folder, None if self.has_manifest else self.known)
        # The manifest was used before its layer was proven: now it is.
        if found.manifest_bytes != self.known.manifest_bytes:
            raise IntegrityError(f"{self.reference} changed its manifest while it was read")

    def _pieces(self, on_bytes: OnBytes) -> Iterator[bytes]:
        for piece in self.registry.open_blob(self.reference, self.layer) if self.held is None else (self.held,):
            on_bytes(len(piece))
            yield piece

    def _made_of(self, files: Sequence[ModelFile], folder: Path) -> Iterator[bytes]:
        """The tar with the files below `folder`. Raises OSError."""
        programs = [bool((folder / file.path).lstat().st_mode & 0o111) for file in files]
        heads = self._heads(files, programs)
        if self.has_manifest:
            yield next(heads) + self.known.manifest_bytes + bytes(padding_bytes(len(self.known.manifest_bytes)))
        for head, file in zip(heads, files, strict=True):
            yield head
            descriptor = os.open(folder / file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb", buffering=0) as opened:
                while piece := opened.read(READ_SIZE_BYTES):
                    yield piece
            yield bytes(padding_bytes(file.size_bytes))
        yield END_OF_ARCHIVE

    def _heads(self, files: Sequence[ModelFile], programs: Sequence[bool]) -> Iterator[bytes]:
        root, manifest_bytes = self.known.root, self.known.manifest_bytes
        manifest = [(root / MANIFEST_NAME, len(manifest_bytes), False)] if self.has_manifest else []
        entries = ((root / file.path, file.size_bytes, program) for file, program in zip(files, programs, strict=True))
        return entry_heads([*manifest, *entries])

    def count_of(self, files: Sequence[ModelFile]) -> int | None:
        """How many of `files`, the first ones, fill a layer of this length; None where no number does."""
        heads = self._heads(files, [False] * len(files))  # a program's is as long
        left = self.layer.size_bytes - len(END_OF_ARCHIVE)
        if self.has_manifest:
            left -= len(next(heads)) + len(self.known.manifest_bytes) + padding_bytes(len(self.known.manifest_bytes))
        count = 0
        while left > 0 and (head := next(heads, None)) is not None:
            left -= len(head) + files[count].size_bytes + padding_bytes(files[count].size_bytes)
            count += 1
        return None if left else count


def with_files(bundles: Sequence[Bundle], ranged: Container[ModelFile]) -> tuple[Bundle, ...]:
    """A model's bundles, in order, with the files that each should hold: together all that do not come in ranges."""
    left = [file for file in bundles[-1].known.manifest.files if file not in ranged]
    told: list[Bundle] = []
    for bundle in bundles:
        count = bundle.count_of(left)
        if count is None:  # not as mlimg packs it; nor can be told where the next one begins
            break
        told.append(replace(bundle, files=tuple(left[:count])))
        left = left[count:]
    return (*told, *bundles[len(told) :])
