"""What a model takes and gives, and whether a request or an answer keeps to it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mlimg.runtime.server.errors import InputError, PredictionError
from mlimg.runtime.server.logs import describe
from mlimg.runtime.server.tensors import TensorSpec, as_tensor, conform, shown

Arrays = dict[str, np.ndarray[Any, Any]]
# The name under which a model of several columns takes all of them as one 2-D tensor.
TABLE: Final = "input"


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """A model's name and its signature. Empty `inputs` or `outputs`: not known."""

    name: str
    version: str | None
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def has_rows(self) -> bool:
        """Whether requests may be put one after the other and predicted as one, as far as the signature tells."""
        return all(spec.shape[:1] == (-1,) for spec in (*self.inputs, *self.outputs))

    def check_inputs(self, arrays: Arrays) -> Arrays:
        """What the handler is given of a request's tensors. Raises InputError."""
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

    def check_outputs(self, answer: object) -> Arrays:
        """The tensors of what the handler returned. Raises PredictionError."""
        if not isinstance(answer, dict) or not answer or not all(isinstance(name, str) for name in answer):
            raise PredictionError("predict did not return a dict of named arrays")
        try:
            tensors = {name: as_tensor(value) for name, value in answer.items()}
        except Exception as error:  # numpy lets what it is given convert itself
            raise PredictionError(f"predict returned what is no tensor: {describe(error)}") from error
        for spec in self.outputs:
            if spec.name not in tensors:
                raise PredictionError(f"predict did not return `{spec.name}`, which the signature names")
            if not spec.allows(tensors[spec.name].shape):
                found = list(tensors[spec.name].shape)
                raise PredictionError(f"output `{spec.name}` has the shape {found}, not {list(spec.shape)}")
        return tensors

    def check_wanted(self, wanted: Collection[str]) -> None:
        """See that the model gives the outputs that a request selects, as far as is known. Raises InputError."""
        if self.outputs:
            _check_known(wanted, [spec.name for spec in self.outputs])


def select(tensors: Arrays, wanted: Collection[str]) -> Arrays:
    """The outputs that a request selects; none means all. Raises InputError."""
    _check_known(wanted, tensors)
    return {name: tensors[name] for name in wanted} if wanted else tensors


def _check_known(wanted: Collection[str], known: Collection[str]) -> None:
    for name in wanted:
        if name not in known:
            raise InputError(f"unknown output `{shown(name)}`: the model gives {_names(known)}")


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
