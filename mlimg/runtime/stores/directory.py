"""Models in a folder: ``ROOT/<name>/<version>/`` holds the model's files as they are.

A version is written in three steps (`docs/model-artifact.md`): `.claim` names the manifest that is coming, then the
files, then `mlimg.manifest`, which makes the version exist. A run that was killed is finished by the next one.
Files are cloned where the file system can share their blocks (Btrfs, XFS), else copied. They are not hard-linked:
training that writes its model in place would alter what is published.
"""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import BinaryIO, Final

from mlimg.runtime.descriptor import OnBytes, ignore_bytes
from mlimg.runtime.digest import READ_SIZE_BYTES, Digest
from mlimg.runtime.errors import ConflictError, IntegrityError, LocalIOError, ModelError
from mlimg.runtime.locks import hold
from mlimg.runtime.manifest import MANIFEST_NAME, ModelFile
from mlimg.runtime.reference import ModelUri
from mlimg.runtime.stores import ModelPayload, PublishedModel, StoredModel, different, is_executable
from mlimg.runtime.verify import read_manifest, verify_folder
from mlimg.runtime.version_folder import check_room, clone, make_folder, remove, sync_folder, sync_folders, write_marker

CLAIM: Final = ".claim"
REPLACED: Final = ".replaced"  # below ROOT/<name>: versions that gave way, still open in containers that run
_PART: Final = ".mlimg-part"
_LOCK_SECONDS: Final = 30.0


class DirectoryStore:
    """A folder with models. With `replace` a version may be published anew; readers keep the one they opened.

    With `force` a claim that never got its manifest gives way to another model.
    """

    def __init__(
        self, root: Path, *, replace: bool = False, force: bool = False, lock_seconds: float = _LOCK_SECONDS
    ) -> None:
        self._root = root
        self._replace = replace
        self._force = force
        self._lock_seconds = lock_seconds

    def folder(self, name: str, version: str) -> Path:
        """Where a version's files are."""
        return self._root / name / version

    def published(self, name: str, version: str) -> PublishedModel | None:
        """The version as it is published, None where there is none; only its manifest is read."""
        folder = self.folder(name, version)
        found = read_manifest(folder)
        if found is None:
            return None
        manifest, data = found
        if (manifest.name, manifest.version) != (name, version):
            raise ConflictError(f"{folder} holds {manifest.name} {manifest.version}")
        return PublishedModel(manifest, Digest.of(data), _uri(folder, Digest.of(data)))

    def publish(self, payload: ModelPayload, *, on_bytes: OnBytes = ignore_bytes) -> StoredModel:
        """Publish a model; another process that writes the same version is waited for, for a while."""
        manifest = payload.manifest
        digest = Digest.of(manifest.to_bytes())
        folder = self.folder(manifest.name, manifest.version)
        make_folder(folder.parent)
        lock = folder.parent / f".{folder.name}.lock"
        with hold(lock, str(folder), wait_seconds=self._lock_seconds):
            if self._is_published(payload, digest):
                return StoredModel(_uri(folder, digest), 0, manifest.size_bytes, existed=True)
            target = folder if self._can_write_in_place(folder, digest) else folder.with_name(f".{folder.name}.new")
            try:
                moved_bytes = _write(target, payload, digest, on_bytes)
                if target != folder:
                    _swap(folder, target)
            except OSError as error:
                raise LocalIOError(f"cannot write {target}: {error.strerror}") from error
        return StoredModel(_uri(folder, digest), moved_bytes, manifest.size_bytes - moved_bytes, existed=False)

    def _is_published(self, payload: ModelPayload, digest: Digest) -> bool:
        """Whether the very model is there. Raises ConflictError for another one that may not be replaced."""
        name, version = payload.manifest.name, payload.manifest.version
        folder = self.folder(name, version)
        try:
            existing = self.published(name, version)
            if existing is None:
                return False
            if existing.manifest_digest != digest:
                raise different(existing.manifest, str(folder))
            verify_folder(folder, existing.manifest, "sizes")
        except (ConflictError, IntegrityError, ModelError):
            if not self._replace:
                raise
            return False
        return True

    def _can_write_in_place(self, folder: Path, digest: Digest) -> bool:
        """Whether nobody else's files are there. Raises ConflictError where they are and may not be replaced."""
        try:
            # A claim that breaks off, or is empty, is one that a killed run had no time to write.
            ours = f"{digest}\n".encode().startswith((folder / CLAIM).read_bytes())
            claimed = True
        except FileNotFoundError:
            ours = not folder.exists() or not any(folder.iterdir())
            claimed = False
        # While we hold the lock, whoever else claimed it is not at it.
        if (ours or (claimed and self._force)) and not (folder / MANIFEST_NAME).exists():
            return True
        if self._replace:
            return False
        if claimed:
            raise ConflictError(
                f"{folder} is claimed by another model that was never finished",
                hint="raise model.version, or take it over with `mlimg build --force` if nobody finishes it",
            )
        raise ConflictError(
            f"{folder} holds files that somebody else put there", hint="raise model.version, or remove that folder"
        )


def _write(folder: Path, payload: ModelPayload, digest: Digest, on_bytes: OnBytes) -> int:
    """Claim, files, manifest. Gives the bytes that were copied. Raises OSError, ModelError, LocalIOError."""
    claim = folder / CLAIM
    if claim.exists() and claim.read_bytes() != f"{digest}\n".encode():
        remove(folder)  # a claim cut short, one that is taken over, or a replacement that was never finished
    make_folder(folder)
    check_room(folder, payload.manifest.size_bytes, f"{payload.manifest.name} {payload.manifest.version}")
    if not claim.exists():
        with claim.open("xb") as opened:
            opened.write(f"{digest}\n".encode())
            opened.flush()
            os.fsync(opened.fileno())
        sync_folder(folder)
    copied_bytes = 0
    for file in payload.manifest.files:
        if not _is_there(folder, file):
            copied_bytes += _place(folder, file, payload.open(file.path), on_bytes)
    sync_folders(folder)
    if claim.read_bytes() != f"{digest}\n".encode():  # locks do not reach every machine that shares a folder
        raise ConflictError(f"{folder}: somebody replaced {CLAIM} while the files were written")
    write_marker(folder, payload.manifest.to_bytes())
    sync_folder(folder.parent)
    return copied_bytes


def _is_there(folder: Path, file: ModelFile) -> bool:
    """Whether a killed run had finished this file."""
    path = folder / file.path
    with contextlib.suppress(FileNotFoundError):
        return not path.is_symlink() and path.stat().st_size == file.size_bytes and Digest.of_file(path) == file.sha256
    return False


def _place(folder: Path, file: ModelFile, source: BinaryIO, on_bytes: OnBytes) -> int:
    """Bring one file to its place, whole or not at all; gives the bytes copied. Raises OSError, ModelError."""
    target, part = folder / file.path, folder / _PART
    target.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    with source, part.open("x+b") as output:
        cloned = clone(source, output)
        sha256 = hashlib.sha256()
        while piece := (output if cloned else source).read(READ_SIZE_BYTES):
            if not cloned:
                output.write(piece)
                on_bytes(len(piece))
            sha256.update(piece)
        output.flush()
        os.fchmod(output.fileno(), 0o755 if is_executable(source) else 0o644)
        os.fsync(output.fileno())
    if sha256.hexdigest() != file.sha256.hex:
        part.unlink()
        raise ModelError(f"`{file.path}` changed while it was published", hint="run again when nothing writes to it")
    part.rename(target)
    return 0 if cloned else file.size_bytes


def _swap(folder: Path, successor: Path) -> None:
    """Put `successor` in place of `folder`, which stays readable for whoever has it open or mounted. Raises OSError."""
    replaced = make_folder(folder.parent / REPLACED)
    if folder.exists():
        folder.rename(Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=replaced)) / folder.name)
    successor.rename(folder)
    sync_folder(folder.parent)


def _uri(folder: Path, digest: Digest) -> ModelUri:
    return ModelUri("file", str(folder), digest)
