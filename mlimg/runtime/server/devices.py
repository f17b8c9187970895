"""The hardware that the option `device` of a template asks for."""

from collections.abc import Callable

from mlimg.runtime.errors import ModelError


def check_device(wanted: object, cuda_is_here: Callable[[], object]) -> None:
    """See that a server which was built for CUDA finds it; it is asked for then alone. Raises ModelError."""
    if wanted == "cuda" and not cuda_is_here():
        raise ModelError("no CUDA device is here", hint="run the server with a GPU, or build it with device=cpu")
