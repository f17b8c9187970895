"""Which engine is meant, and the first words with it.

The same rule as the `docker` command: `DOCKER_HOST`, else the context of `DOCKER_CONTEXT`, else the current one. So
the SDK and `docker buildx` talk to one engine.
https://docs.docker.com/engine/manage-resources/contexts/
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import docker
from docker.context import ContextAPI
from docker.context.config import get_current_context_name
from docker.errors import DockerException
from docker.tls import TLSConfig
from docker.utils.utils import kwargs_from_env

from mlimg.engine.border import shown
from mlimg.runtime.errors import EngineError

CONNECT_SECONDS: Final = 1.5
# An engine that is busy with a load or a prune may take some seconds to say hello.
ANSWER_SECONDS: Final = 20.0
# The newest form of the answers that we read, and the oldest that has all we ask for (Engine 20.10).
# An engine speaks every version down to its own minimum; Engine 29 still speaks 1.44.
_SPOKEN: Final = (1, 44)
_OLDEST: Final = (1, 41)
_HINT: Final = "check DOCKER_HOST and `docker context ls`"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine listens, and the name by which `docker` knows the place."""

    context: str
    host: str
    tls: TLSConfig | None = field(default=None, repr=False)

    def client(self, version: str, timeout_seconds: float) -> docker.APIClient:
        """A client that speaks `version`; nothing is sent yet. Raises EngineError for an impossible address."""
        try:
            client = docker.APIClient(
                base_url=self.host or None,
                tls=self.tls or False,
                version=version,
                timeout=timeout_seconds,  # type: ignore[arg-type]
            )
        except (DockerException, ImportError, ValueError) as error:
            hint = "such as DOCKER_HOST=unix:///var/run/docker.sock"
            if self.host.startswith("ssh://"):
                hint = "over ssh the SDK needs paramiko: pip install 'docker[ssh]'"
            raise EngineError(f"{self} is not the address of an engine: {shown(str(error))}", hint=hint) from error
        # Else REQUESTS_CA_BUNDLE, which many companies set, takes the place of the context's own CA.
        client.trust_env = self.tls is None
        return client

    def __str__(self) -> str:
        if self.context == "default":
            return f"DOCKER_HOST=`{shown(self.host)}`" if self.host else "the default socket"
        return f"docker context `{shown(self.context)}` ({shown(self.host)})"


def find_endpoint(environ: Mapping[str, str]) -> Endpoint:
    """Decide which engine is meant. Raises EngineError for a context that does not exist or cannot be read."""
    try:
        given = kwargs_from_env(environment=dict(environ) or {"": ""})
        if "base_url" in given:
            return Endpoint("default", given["base_url"], given.get("tls"))
        name = environ.get("DOCKER_CONTEXT") or get_current_context_name()
        context = ContextAPI.get_context(name)
    except Exception as error:  # the SDK raises bare Exception for an unreadable context
        raise EngineError(f"docker's contexts cannot be read: {shown(str(error))}") from error
    if context is None:
        raise EngineError(
            f"docker has no context `{shown(name)}`",
            hint="`docker context ls` lists them; the SDK looks beside docker's config.json, which has to be there",
        )
    if name == "default":
        return Endpoint("default", "", given.get("tls"))
    return Endpoint(name, context.Host or "", context.TLSConfig)


def greet(endpoint: Endpoint, answer_seconds: float = ANSWER_SECONDS) -> tuple[Mapping[str, Any], str]:
    """Ask an engine for its versions; return them and the API version to speak.

    Raises EngineError when none answers, or when it is too old.
    """
    client = endpoint.client(_text(_OLDEST), answer_seconds)
    try:
        if not client.base_url.startswith("http+docker:"):
            client.timeout = (CONNECT_SECONDS, answer_seconds)  # type: ignore[assignment]
        versions = client.version(api_version=False)
    except Exception as error:
        raise _unreachable(endpoint, error) from error
    finally:
        client.close()
    newest, oldest = _version(versions, "ApiVersion"), _version(versions, "MinAPIVersion")
    if newest is None:
        raise EngineError(f"what answers at {endpoint} is not a Docker Engine", hint=_HINT)
    if newest < _OLDEST:
        name = shown(f"Docker Engine {versions.get('Version')}")
        raise EngineError(
            f"{name} speaks API {_text(newest)}; mlimg needs {_text(_OLDEST)}",
            hint="upgrade to Docker Engine 20.10 or newer",
        )
    return versions, _text(max(min(newest, _SPOKEN), oldest or _OLDEST))


def _unreachable(endpoint: Endpoint, error: BaseException) -> EngineError:
    """Why no engine answered, in terms of what helps."""
    causes = list(_causes(error))
    words = shown(str(error))
    if any(isinstance(cause, PermissionError) for cause in causes):
        return EngineError(
            f"this user may not talk to the Docker Engine at {endpoint}",
            hint="`sudo usermod -aG docker $USER`, then log in again",
        )
    if any(isinstance(cause, FileNotFoundError | ConnectionRefusedError) for cause in causes):
        return EngineError(
            f"no Docker Engine answers at {endpoint}",
            hint="start Docker (`sudo systemctl start docker`, or Docker Desktop); is DOCKER_HOST meant?",
        )
    if any(isinstance(cause, TimeoutError) for cause in causes) or "timed out" in words:
        return EngineError(
            f"the Docker Engine at {endpoint} does not answer", hint="restart Docker, or check DOCKER_HOST"
        )
    return EngineError(f"no Docker Engine answers at {endpoint}: {words}", hint=_HINT)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that it was raised from or holds; HTTP libraries wrap in every way there is."""
    todo: list[object] = [error]
    seen: set[int] = set()
    while todo:
        item = todo.pop()
        if not isinstance(item, BaseException) or id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        todo += [item.__cause__, item.__context__, getattr(item, "reason", None), *item.args]


def _version(versions: Mapping[str, Any], key: str) -> tuple[int, int] | None:
    text = versions.get(key) if isinstance(versions, Mapping) else None
    matched = re.fullmatch(r"(\d{1,4})\.(\d{1,4})", text) if isinstance(text, str) else None
    return (int(matched[1]), int(matched[2])) if matched else None


def _text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
