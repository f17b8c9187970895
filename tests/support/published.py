"""A server in a registry that nobody built: a small image that mlimg takes for the one which a spec asks for."""

from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from mlimg.append import Image, Layer
from mlimg.material import check_server
from mlimg.means import Means
from mlimg.release import make_plan
from mlimg.runtime.descriptor import OCI_LAYER, OCI_MANIFEST, Descriptor, MemoryBlob
from mlimg.runtime.digest import Digest
from mlimg.runtime.oci import Access, Registry
from mlimg.runtime.reference import SERVER_INPUTS_LABEL
from mlimg.spec.load import Overrides, load_spec
from mlimg.spec.schema import Pattern

if TYPE_CHECKING:
    from mlimg.report import Reporter

LAYER: Final = b"a layer of the server"
HANDLER: Final = "def load(folder, options): ...\ndef predict(model, inputs): ...\n"
SPEC: Final = """\
image: {host}/serving/echo
server:
  template: python
  code: ./handler.py
  version: "1.0"
model:
  version: "1"
  source: ./model
  store: oci://{host}/models
"""  # and no platform: nobody has to ask an engine which one it builds


def write_project(folder: Path, host: str) -> None:
    """Write a project whose names lead to the registry at `host`; its model is the caller's."""
    (folder / "handler.py").write_text(HANDLER)
    (folder / "mlimg.yaml").write_text(SPEC.format(host=host))


def publish_server(folder: Path) -> None:
    """Have the server of the spec in `folder` in its registry, as CI would have left it."""
    means = Means(access=Access(), report=cast("Reporter", None))  # nothing is said before a look-up
    plan = make_plan(check_server(load_spec(folder, Overrides())), means, pattern=Pattern.IN_IMAGE, push=True)
    descriptor = Descriptor(OCI_LAYER, Digest.of(LAYER), len(LAYER))
    image = Image.of(
        os="linux",
        architecture="amd64",
        variant="",
        settings={"Labels": {SERVER_INPUTS_LABEL: plan.server.inputs.text, "version": plan.server.version}},
        layers=[Layer(descriptor.digest, descriptor)],
    )
    registry = Registry(Access())
    for data in (LAYER, image.config()):
        registry.push_blob(plan.server.image, MemoryBlob(data))
    registry.push_manifest(plan.server.image, image.manifest(), OCI_MANIFEST)
    registry.close()
