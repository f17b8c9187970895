"""A loaded model: named tensors in, named tensors out, both held to the signature."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mlimg.runtime.errors import ModelError
from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.server.errors import InputError, PredictionError
from mlimg.runtime.server.facts import ServerFacts
from mlimg.runtime.server.handler import Handler, Signature, parse_signature
from mlimg.runtime.server.logs import describe
from mlimg.runtime.server.tensors import TensorSpec, as_tensor, conform, shown

log = logging.getLogger(__name__)
Arrays = dict[str, np.ndarray[Any, Any]]
# The name under which a model of several columns takes all of them as one 2-D tensor.
TABLE: Final = "input"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to predict. Empty `inputs` or `outputs`: not known."""

    name: str
    version: str | None
    platform: str
    handler: Handler
    model: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def predict(self, arrays: Arrays, wanted: Collection[str] = ()) -> Arrays:
        """Answer a request; `wanted` selects outputs, none means all. Raises InputError and PredictionError."""
        arrays = self._check_inputs(arrays)
        self._check_wanted(wanted, [spec.name for spec in self.outputs])
        try:
            answer = self.handler.predict(self.model, arrays)
        except InputError:
            raise
        except BaseException as error:  # SystemExit in a worker thread must not pass for an answer
            raise PredictionError(f"predict failed: {describe(error)}") from error
        tensors = self._check_outputs(answer)
        self._check_wanted(wanted, tensors)
        return {name: tensors[name] for name in wanted} if wanted else tensors

    def warm_up(self) -> None:
        """Predict once, so that the first client does not wait for what is done lazily. Raises ModelError."""
        try:
            if self.handler.warm_up is not None:
                self.handler.warm_up(self.model)
            elif self.inputs and all(spec.datatype for spec in self.inputs):
                self.predict({spec.name: spec.sample() for spec in self.inputs})
        except InputError as error:
            log.info("the warm-up request was refused: %s", error)
        except PredictionError as error:
            raise ModelError(f"the warm-up request failed: {error}") from error
        except Exception as error:
            raise ModelError(f"`warm_up` of the handler failed: {describe(error)}") from error

    def _check_inputs(self, arrays: Arrays) -> Arrays:
        if not self.inputs:
            return arrays
        known = {spec.name: spec for spec in self.inputs}
        if TABLE not in known:
            arrays = _split_table(arrays, self.inputs)
        for name in arrays:
            if name not in known:
                raise InputError(f"unknown input `{shown(name)}`: the model takes {_names(known)}")
        needed = [spec.name for spec in self.inputs if spec.parameters.get("required", True)]
        missing = [name for name in needed if name not in arrays]
        if missing:
            raise InputError(f"input missing: {_names(missing)}")
        return {name: conform(name, array, known[name]) for name, array in arrays.items()}

    def _check_outputs(self, answer: object) -> Arrays:
        if not isinstance(answer, dict) or not answer or not all(isinstance(name, str) for name in answer):
            raise PredictionError("predict did not return a dict of named arrays")
        try:
            tensors = {name: as_tensor(value) for name, value in answer.items()}
        except ValueError as error:
            raise PredictionError(f"predict returned what is no tensor: {describe(error)}") from error
        for spec in self.outputs:
            if spec.name not in tensors:
                raise PredictionError(f"predict did not return `{spec.name}`, which the signature names")
            if not spec.allows(tensors[spec.name].shape):
                found = list(tensors[spec.name].shape)
                raise PredictionError(f"output `{spec.name}` has the shape {found}, not {list(spec.shape)}")
        return tensors

    @staticmethod
    def _check_wanted(wanted: Collection[str], known: Collection[str]) -> None:
        for name in wanted:
            if known and name not in known:
                raise InputError(f"unknown output `{shown(name)}`: the model gives {_names(known)}")


def load_model(handler: Handler, prepared: PreparedModel, facts: ServerFacts) -> LoadedModel:
    """Load what was prepared. Raises ModelError and LimitError."""
    model = handler.load(prepared.folder, facts.options)
    inputs, outputs = handler.signature(model) or _manifest_signature(prepared)
    manifest = prepared.manifest
    return LoadedModel(
        name=manifest.name if manifest else "model",
        version=manifest.version if manifest else None,
        platform=manifest.framework if manifest else facts.template,
        handler=handler,
        model=model,
        inputs=inputs,
        outputs=outputs,
    )


def _manifest_signature(prepared: PreparedModel) -> Signature:
    if prepared.manifest is None:
        return (), ()
    try:
        return parse_signature(prepared.manifest.inputs, prepared.manifest.outputs)
    except ValueError as error:
        raise ModelError(f"the model manifest's signature is malformed: {describe(error)}") from error


def _split_table(arrays: Arrays, inputs: Sequence[TensorSpec]) -> Arrays:
    """One 2-D tensor instead of a tensor a column: its columns come in the order of the metadata."""
    table = arrays.get(TABLE)
    columns = all(spec.shape in ((-1,), (-1, 1)) for spec in inputs)
    if table is None or len(arrays) > 1 or not columns or table.ndim != 2:
        return arrays
    if table.shape[1] != len(inputs):
        raise InputError(f"`{TABLE}` has {table.shape[1]} columns: the model takes {len(inputs)}")
    return {spec.name: table[:, position] for position, spec in enumerate(inputs)}


def _names(names: Collection[str]) -> str:
    listed = [f"`{shown(name)}`" for name in list(names)[:20]]
    return ", ".join(listed) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
