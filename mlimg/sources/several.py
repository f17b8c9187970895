"""Several models as the one that an image holds: a folder each, with a manifest of its own."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import BinaryIO

from mlimg.runtime.digest import Digest
from mlimg.runtime.manifest import MANIFEST_NAME, ModelFile, ModelManifest
from mlimg.sources import Inventory, ModelSource, SourceFile

_ANY = Digest.of(b"")  # as long as every digest is: a manifest's length is known before its files are read


@dataclass(frozen=True)
class NamedModel:
    """One of several models. `manifest` is known once its files were hashed."""

    name: str
    version: str
    framework: str
    format: str
    source: ModelSource
    manifest: ModelManifest | None = None

    @cached_property
    def manifest_bytes(self) -> bytes:
        """The content of its `mlimg.manifest`, of the right length at least."""
        inventory = self.source.inventory()
        files = tuple(ModelFile(file.path, file.size_bytes, file.sha256 or _ANY) for file in inventory)
        manifest = ModelManifest(self.name, self.version, self.framework, self.format, files, source=inventory.origin)
        return (self.manifest or manifest).to_bytes()


@dataclass(frozen=True)
class SeveralModels:
    """A `ModelSource` of several. What is read of it before all manifests are known may not be what it becomes."""

    models: Sequence[NamedModel]

    def inventory(self) -> Inventory:
        """All files, below their models' names, with a manifest in each folder."""
        files = [file for model in self.models for file in _files(model)]
        return Inventory(tuple(sorted(files, key=lambda file: str(file.path))))

    def open(self, path: PurePosixPath) -> BinaryIO:
        """Open a model's file, or its manifest."""
        name, *rest = path.parts
        model = next(model for model in self.models if model.name == name)
        if rest == [MANIFEST_NAME]:
            return io.BytesIO(model.manifest_bytes)
        return model.source.open(PurePosixPath(*rest))


def _files(model: NamedModel) -> list[SourceFile]:
    sha256s = {file.path: file.sha256 for file in model.manifest.files} if model.manifest else {}
    listed = [
        replace(file, path=model.name / file.path, sha256=sha256s.get(file.path, file.sha256))
        for file in model.source.inventory()
    ]
    data = model.manifest_bytes
    return [*listed, SourceFile(PurePosixPath(model.name, MANIFEST_NAME), len(data), sha256=Digest.of(data))]
