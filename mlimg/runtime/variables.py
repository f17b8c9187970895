"""Values of environment variables. One that is set and empty counts as not set."""

from collections.abc import Mapping
from typing import Final

from mlimg.runtime.errors import SpecError, printable

# Where a server listens and says that it is ready, unless it is told otherwise.
DEFAULT_HOST: Final = "0.0.0.0"  # noqa: S104 (a container is reached from outside)
DEFAULT_PORT: Final = 8080
DEFAULT_GRPC_PORT: Final = 8081
READY_PATH: Final = "/v2/health/ready"
# A platform's own word goes before PORT, which an image may have set: SageMaker, Vertex AI.
_PORTS: Final = ("SAGEMAKER_BIND_TO_PORT", "AIP_HTTP_PORT", "PORT")
_SWITCH: Final = {
    "on": True,
    "true": True,
    "yes": True,
    "1": True,
    "off": False,
    "false": False,
    "no": False,
    "0": False,
}


def listen_port(environ: Mapping[str, str]) -> int:
    """Where to listen. Raises SpecError naming the variable."""
    name = next((name for name in _PORTS if environ.get(name)), _PORTS[-1])
    return whole_number(environ, name, DEFAULT_PORT, 0, 65535)


def whole_number(environ: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    """A number from `least` to `most`. Raises SpecError naming the variable."""
    text = environ.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 12 and least <= int(text) <= most):
        raise SpecError(f"{name}={printable(text)[:100]}: expected a whole number from {least} to {most}")
    return int(text)


def switch(environ: Mapping[str, str], name: str, *, default: bool) -> bool:
    """On or off, however people write it. Raises SpecError naming the variable."""
    text = environ.get(name, "").lower()
    if not text:
        return default
    if text not in _SWITCH:
        raise SpecError(f"{name}={printable(text)[:100]}: expected `on` or `off`")
    return _SWITCH[text]


def words(environ: Mapping[str, str], name: str) -> list[str]:
    """What is parted by commas or blanks."""
    return environ.get(name, "").replace(",", " ").split()
