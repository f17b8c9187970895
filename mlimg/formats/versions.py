"""The framework that saved a model, compared with those that may serve it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mlimg.formats.detect import Detected
from mlimg.runtime.errors import ModelError, printable
from mlimg.spec.requirement import required_package

PACKAGES: Final = {  # by framework: what installs it
    "sklearn": ("scikit-learn",),
    "xgboost": ("xgboost-cpu", "xgboost"),
    "lightgbm": ("lightgbm",),
    "pytorch": ("torch",),
    "tensorflow": ("tensorflow-cpu", "tensorflow"),
    "keras": ("keras",),
    "transformers": ("transformers",),
    "mlflow": ("mlflow-skinny", "mlflow"),
    "onnx": ("onnxruntime", "onnxruntime-gpu"),
}
# The newest opset that each minor version of onnxruntime 1 loads; tried with models of one operator.
_OPSETS: Final = {20: 21, 21: 22, 22: 22, 23: 23, 24: 25, 25: 26, 26: 26, 27: 26}
_PINNED: Final = re.compile(r"(?:===|==|~=) ?v?(\d{1,9}(?:\.\d{1,9})*)")
_LEAST: Final = re.compile(r">= ?v?(\d{1,9}(?:\.\d{1,9})*)")


def check_versions(chosen: Detected, template_versions: Sequence[str], requirements: Sequence[str]) -> tuple[str, ...]:
    """See that neither template nor pins are of another major version than the model. Return what else is worth saying.

    Raises ModelError.
    """
    if chosen.format == "onnx":
        _check_opset(chosen, requirements)
    if not chosen.version:
        return ()
    who = f"`{printable(str(chosen.path))}` was saved by {chosen.framework} {chosen.version}"
    if template_versions and not any(_of(chosen.version, version) for version in template_versions):
        wanted = " or ".join(template_versions)
        raise ModelError(
            f"{who}; the template serves models of {chosen.framework} {wanted}",
            hint=f"load it with {chosen.framework} {wanted} and save it again",
        )
    if pinned := _bound(_PINNED, chosen, requirements):
        return _compared(chosen, who, pinned, template_versions)
    if pin := recommended_pin(chosen, requirements):
        return (f"{who}: `server.requirements: [{pin}]` serves it with the same",)
    if chosen.framework == "sklearn" and (newer := _newer(chosen, requirements)):
        return (f"{who}; {newer.line} is newer: compare the server's answers with your own",)
    return ()


def recommended_pin(chosen: Detected, requirements: Sequence[str]) -> str:
    """The requirement that pins what saved the model, where that makes a difference and `requirements` allow it.

    scikit-learn alone promises nothing between its minor versions.
    """
    released = re.fullmatch(r"\d{1,4}(\.\d{1,4}){1,3}", chosen.version)
    if chosen.framework != "sklearn" or not released or _newer(chosen, requirements):
        return ""
    return f"scikit-learn=={chosen.version}"


@dataclass(frozen=True, slots=True)
class _Bound:
    line: str
    version: tuple[int, ...]  # as far as it is written, no more than major and minor


def _bound(pattern: re.Pattern[str], chosen: Detected, requirements: Sequence[str]) -> _Bound | None:
    for line in requirements:
        if required_package(line) in PACKAGES.get(chosen.framework, ()) and (found := pattern.search(line)):
            return _Bound(printable(line.partition(" --hash")[0]), _parts(found[1]))
    return None


def _newer(chosen: Detected, requirements: Sequence[str]) -> _Bound | None:
    """The requirement that what saved the model is too old for."""
    least = _bound(_LEAST, chosen, requirements)
    return least if least and _parts(chosen.version) < least.version else None


def _compared(chosen: Detected, who: str, pin: _Bound, template_versions: Sequence[str]) -> tuple[str, ...]:
    saved, served = _parts(chosen.version), pin.version
    # A template that names several majors loads the older ones' models with the newer.
    named = {version.partition(".")[0] for version in template_versions}
    if saved[0] != served[0] and not (saved < served and str(served[0]) in named):
        raise ModelError(
            f"{who}; the server's requirements have {pin.line}",
            hint="pin the version that saved it, or load it with the pinned one and save it again",
        )
    if len(served) > 1 and (served < saved or (chosen.framework == "sklearn" and served != saved)):
        return (f"{who}; {pin.line} is another minor version: compare the server's answers with your own",)
    return ()


def _check_opset(chosen: Detected, requirements: Sequence[str]) -> None:
    pin = _bound(_PINNED, chosen, requirements)
    if pin is None or len(pin.version) < 2 or pin.version[0] != 1:
        return
    newest = _OPSETS.get(pin.version[1], chosen.opset)
    if chosen.opset > newest:
        raise ModelError(
            f"`{printable(str(chosen.path))}` is of ONNX opset {chosen.opset}; {pin.line} loads models up to {newest}",
            hint="pin a newer onnxruntime, or export the model with an older opset",
        )


def _of(version: str, versions: str) -> bool:
    return version == versions or version.startswith(f"{versions}.")


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d{1,9}", version)[:2]) or (0,)
