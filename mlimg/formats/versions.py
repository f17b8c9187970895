"""The framework that saved a model, compared with those that may serve it."""

import re
from collections.abc import Sequence
from typing import Final

from mlimg.formats.detect import Detected
from mlimg.runtime.errors import ModelError, printable
from mlimg.spec.requirement import required_package

PACKAGES: Final = {  # by framework: what installs it, first the one to recommend
    "sklearn": ("scikit-learn",),
    "xgboost": ("xgboost-cpu", "xgboost"),
    "lightgbm": ("lightgbm",),
    "pytorch": ("torch",),
    "tensorflow": ("tensorflow-cpu", "tensorflow"),
    "keras": ("keras",),
    "transformers": ("transformers",),
    "mlflow": ("mlflow-skinny", "mlflow"),
}
_PINNED: Final = re.compile(r"(?:===|==|~=) ?v?(\d{1,9}(?:\.\d{1,9})*)")


def check_versions(chosen: Detected, template_versions: Sequence[str], requirements: Sequence[str]) -> tuple[str, ...]:
    """See that neither template nor pins are of another major version than the model. Return what else is worth saying.

    Raises ModelError.
    """
    if not chosen.version:
        return ()
    who = f"`{printable(str(chosen.path))}` was saved by {chosen.framework} {chosen.version}"
    if template_versions and not any(_of(chosen.version, version) for version in template_versions):
        wanted = " or ".join(template_versions)
        raise ModelError(
            f"{who}; the template serves models of {chosen.framework} {wanted}",
            hint=f"load it with {chosen.framework} {wanted} and save it again",
        )
    pins = [line for line in requirements if required_package(line) in PACKAGES.get(chosen.framework, ())]
    for line in pins:
        if pinned := _PINNED.search(line):
            return _compared(chosen, who, line.partition(" --hash")[0], pinned[1], template_versions)
    if pin := recommended_pin(chosen):
        return (f"{who}: `server.requirements: [{pin}]` serves it with the same",)
    return ()


def recommended_pin(chosen: Detected) -> str:
    """The requirement that pins what saved the model, where that makes a difference; else nothing.

    scikit-learn alone promises nothing between its minor versions.
    """
    released = re.fullmatch(r"\d{1,4}(\.\d{1,4}){1,3}", chosen.version)
    return f"scikit-learn=={chosen.version}" if chosen.framework == "sklearn" and released else ""


def _compared(chosen: Detected, who: str, line: str, pinned: str, template_versions: Sequence[str]) -> tuple[str, ...]:
    saved, served = _parts(chosen.version), _parts(pinned)
    newer_is_served = saved < served and sum(_of(pinned, version) for version in template_versions)
    if saved[0] != served[0] and not newer_is_served:
        raise ModelError(
            f"{who}; the server's requirements have {printable(line)}",
            hint="pin the version that saved it, or load it with the pinned one and save it again",
        )
    if len(served) > 1 and (served[:2] < saved[:2] or (chosen.framework == "sklearn" and served[:2] != saved[:2])):
        return (f"{who}; {printable(line)} is another minor version: compare the server's answers with your own",)
    return ()


def _of(version: str, versions: str) -> bool:
    return version == versions or version.startswith(f"{versions}.")


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d{1,9}", version)[:2]) or (0,)
