"""The handler: the code that loads a model and predicts with it. `docs/templates.md` shows how to write one."""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mlimg.runtime.errors import LimitError, MlimgError, ModelError, TemplateError
from mlimg.runtime.server.logs import describe
from mlimg.runtime.server.seldom import imported_when_used
from mlimg.runtime.server.tensors import TensorSpec

Tensors = dict[str, Any]
Signature = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


@dataclass(frozen=True, slots=True)
class Handler:
    """The functions of a `handler.py`."""

    path: Path
    load_model: Callable[[Path, Mapping[str, object]], Any]
    predict: Callable[[Any, Tensors], Tensors]
    describe_signature: Callable[[Any], Any] | None
    warm_up: Callable[[Any], object] | None

    def load(self, folder: Path, options: Mapping[str, object]) -> Any:
        """Load the model. Raises ModelError, or LimitError when memory is short."""
        try:
            with imported_when_used():
                return self.load_model(folder, options)
        except MlimgError:
            raise
        except MemoryError as error:
            raise LimitError("the model does not fit into memory", hint="raise the memory limit") from error
        except ImportError as error:
            raise ModelError(
                f"the model cannot be loaded: {describe(error)}",
                hint="add what is missing to server.requirements or server.code",
            ) from error
        except BaseException as error:  # SystemExit too: a server that cannot load never ends with 0
            raise ModelError(f"the model cannot be loaded: {describe(error)}") from error

    def signature(self, model: Any) -> Signature | None:
        """The model's inputs and outputs as the handler knows them; None if it does not. Raises ModelError."""
        if self.describe_signature is None:
            return None
        try:
            described = self.describe_signature(model)
            return None if described is None else parse_signature(*described)
        except Exception as error:
            raise ModelError(f"`signature` of the handler failed: {describe(error)}") from error


def parse_signature(inputs: Any, outputs: Any) -> Signature:
    """Read tensors as metadata describes them. Raises ValueError."""
    return tuple(map(TensorSpec.parse, inputs)), tuple(map(TensorSpec.parse, outputs))


def import_handler(server_dir: Path) -> Handler:
    """Import the user's handler, else the template's. Raises TemplateError."""
    code = server_dir / "code"
    path = next((p for p in (code / "handler.py", server_dir / "handler.py") if p.is_file()), None)
    if path is None:
        raise TemplateError(
            "this server has no handler",
            hint="put a handler.py with load(model_dir, options) and predict(model, inputs) into server.code",
        )
    sys.path.insert(0, str(code))
    module = _import(path)
    for name in ("load", "predict"):
        if not callable(getattr(module, name, None)):
            raise TemplateError(f"{path} has no function `{name}`")
    return Handler(
        path=path,
        load_model=module.load,
        predict=module.predict,
        describe_signature=getattr(module, "signature", None),
        warm_up=getattr(module, "warm_up", None),
    )


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("handler", path)
    if spec is None or spec.loader is None:
        raise TemplateError(f"{path} is not a Python module")
    module = importlib.util.module_from_spec(spec)
    # Under its name before it runs, so that pickles which refer to `handler.Class` find it.
    sys.modules["handler"] = module
    try:
        with imported_when_used():
            spec.loader.exec_module(module)
    except BaseException as error:  # SystemExit too
        hint = "add what is missing to server.requirements" if isinstance(error, ImportError) else ""
        raise TemplateError(f"{path} cannot be imported: {describe(error)}", hint=hint) from error
    return module
