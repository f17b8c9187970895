"""A loaded model: named tensors in, named tensors out."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from mlimg.runtime.errors import ModelError
from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.server.errors import InputError, PredictionError
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.handler import Handler, Signature, parse_signature
from mlimg.runtime.server.logs import describe
from mlimg.runtime.server.metadata import Arrays, ModelMetadata, select

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to predict."""

    metadata: ModelMetadata
    handler: Handler
    model: Any

    def predict(self, arrays: Arrays, wanted: Collection[str] = ()) -> Arrays:
        """Answer a request; `wanted` selects outputs, none means all. Raises InputError and PredictionError."""
        arrays = self.metadata.check_inputs(arrays)
        self.metadata.check_wanted(wanted)
        return select(self.run(arrays), wanted)

    def run(self, arrays: Arrays) -> Arrays:
        """Predict from inputs that were checked. Raises InputError and PredictionError."""
        try:
            answer = self.handler.predict(self.model, arrays)
        except InputError:
            raise
        except BaseException as error:  # SystemExit in a worker thread must not pass for an answer
            raise PredictionError(f"predict failed: {describe(error)}") from error
        return self.metadata.check_outputs(answer)

    def warm_up(self) -> None:
        """Predict once, so that the first client does not wait for what is done lazily. Raises ModelError."""
        inputs = self.metadata.inputs
        try:
            if self.handler.warm_up is not None:
                self.handler.warm_up(self.model)
            elif inputs and all(spec.datatype for spec in inputs):
                self.predict({spec.name: spec.sample() for spec in inputs})
        except InputError as error:
            log.info("the warm-up request was refused: %s", error)
        except PredictionError as error:
            raise ModelError(f"the warm-up request failed: {error}") from error
        except Exception as error:
            raise ModelError(f"`warm_up` of the handler failed: {describe(error)}") from error


def load_model(handler: Handler, prepared: PreparedModel, facts: ServerFacts) -> LoadedModel:
    """Load what was prepared. Raises ModelError and LimitError."""
    model = handler.load(prepared.folder, facts.options)
    inputs, outputs = handler.signature(model) or _manifest_signature(prepared)
    manifest = prepared.manifest
    metadata = ModelMetadata(
        name=manifest.name if manifest else "model",
        version=manifest.version if manifest else None,
        platform=manifest.framework if manifest else facts.template,
        inputs=inputs,
        outputs=outputs,
    )
    return LoadedModel(metadata, handler, model)


def _manifest_signature(prepared: PreparedModel) -> Signature:
    if prepared.manifest is None:
        return (), ()
    try:
        return parse_signature(prepared.manifest.inputs, prepared.manifest.outputs)
    except ValueError as error:
        raise ModelError(f"the model manifest's signature is malformed: {describe(error)}") from error
