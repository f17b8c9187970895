"""Models loaded, unloaded and switched while requests go on.

A version is brought here, verified, loaded and warmed up beside the one that answers, then takes its place in one
assignment. The old one is closed when its last request is answered, and stays when anything of the new one fails.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Final

from starlette.exceptions import HTTPException

from mlimg.runtime.errors import (
    ConflictError,
    CredentialsError,
    IntegrityError,
    LimitError,
    LocalIOError,
    MlimgError,
    ModelError,
    RemoteError,
    RemoteTemporaryError,
    SpecError,
    Stopped,
    TemplateError,
    printable,
)
from mlimg.runtime.locate import Located, locate, parse_uri
from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.reference import ModelUri
from mlimg.runtime.server.http import RETRY, leaving
from mlimg.runtime.server.memory import settle
from mlimg.runtime.server.runners import Runner
from mlimg.runtime.server.start import WayUp
from mlimg.runtime.server.state import ModelState, Phase, State

log = logging.getLogger(__name__)
_STATUS: Final[dict[type[MlimgError], int]] = {
    SpecError: 400,
    ConflictError: 409,
    TemplateError: 422,
    ModelError: 422,
    LimitError: 422,
    CredentialsError: 502,
    RemoteError: 502,
    IntegrityError: 502,
    RemoteTemporaryError: 503,
    LocalIOError: 507,
}
_POLL_SECONDS: Final = 0.05


class Repository:
    """The models of a server that is up. The event loop alone calls it; `is_held` tells of a runner at work.

    Only what lies beneath `allow` is loaded: prefixes of references; with none, the repositories of the start's models.
    """

    def __init__(self, state: State, way: WayUp, is_held: Callable[[Runner], bool], allow: Sequence[str]) -> None:
        self._state = state
        self._way = way
        self._is_held = is_held
        uris = [model.located.uri for model in state.models if model.located and model.located.uri]
        self._allow = tuple(allow) or tuple(map(_repository, uris))
        self._loading = asyncio.Lock()  # one after another: no framework promises that it loads in several threads
        self._tasks: set[asyncio.Task[ModelState]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        # The versions that this process put on the disk, and may remove.
        self._fetched = {model.prepared.folder for model in state.models if model.prepared and _came(model.prepared)}

    async def load(self, name: str, reference: str | None = None) -> ModelState:
        """Let the model that `reference` names answer as `name`; without one, what its own reference names now.

        It goes on when the caller is cancelled: what a thread has begun would come up with nobody to close it.
        Raises HTTPException: 404 for a name without reference, 403 for a reference that is not allowed, 409 while that
        model is being loaded, and for what goes wrong the status of its kind. Then all is as it was.
        """
        task = asyncio.create_task(self._load(name, reference))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _load(self, name: str, reference: str | None) -> ModelState:
        if name in self._state.coming:
            raise HTTPException(409, "that model is being loaded", RETRY)
        known = self._find(name)
        if known is None and reference is None:
            raise HTTPException(404, "unknown model: say which to load, in `parameters`")
        model = ModelState(name, known.located if known else None)
        self._state.coming[name] = model
        try:
            async with self._loading:
                if reference is not None:
                    model.located = await asyncio.to_thread(self._locate, reference)
                return await self._switch(model)
        except Stopped:
            raise leaving() from None
        except MlimgError as error:
            raise _refusal(name, error) from error
        finally:
            del self._state.coming[name]

    def unload(self, name: str) -> None:
        """Let a model answer no new request. Raises HTTPException: 404 for an unknown one, 409 while it is loaded."""
        if name in self._state.coming:
            raise HTTPException(409, "that model is being loaded", RETRY)
        model = self._find(name)
        if model is None:
            raise HTTPException(404, "unknown model")
        if not model.unloaded:
            gone = ModelState(name, model.located)
            gone.enter(Phase.UNLOADING)
            self._put(gone)
            self._retire(model, lambda: gone.enter(Phase.UNLOADED))

    def _find(self, name: str) -> ModelState | None:
        return next((model for model in self._state.models if model.name == name), None)

    def _locate(self, reference: str) -> Located:
        place = _place(parse_uri(reference))
        if not any(_is_beneath(place, prefix) for prefix in self._allow):
            raise HTTPException(403, f"{printable(place)} is not among what this server may load")
        return locate({**self._way.environ, "MLIMG_MODEL": reference})

    async def _switch(self, model: ModelState) -> ModelState:
        name = model.name
        prepared = await asyncio.to_thread(self._way.prepare, model)
        if _came(prepared):
            self._fetched.add(prepared.folder)
        before = self._find(name)
        is_up = before and before.runner and not before.failure
        if before and is_up and before.prepared and _is_same(before.prepared, prepared):
            await asyncio.to_thread(self._put_away, prepared)
            return before
        try:
            _check_name(name, prepared)
            others = [other for other in self._state.models if other.name != name]
            await asyncio.to_thread(self._way.load, model, prepared, others)
        except BaseException:
            await asyncio.to_thread(self._put_away, prepared)
            raise
        self._put(model)
        if before is not None:
            self._retire(before)
        return model

    def _put(self, model: ModelState) -> None:
        """Let a model stand where one of its name stood, else at the end."""
        models = self._state.models
        if self._find(model.name) is None:
            self._state.models = (*models, model)
        else:
            self._state.models = tuple(model if other.name == model.name else other for other in models)

    def _retire(self, model: ModelState, closed: Callable[[], None] = lambda: None) -> None:
        task = asyncio.create_task(self._close(model, closed))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self, model: ModelState, closed: Callable[[], None]) -> None:
        """Close a model that has no place any more, once nobody waits for its answers."""
        if model.runner is not None:
            while self._is_held(model.runner):
                await asyncio.sleep(_POLL_SECONDS)
            model.runner.close()
            model.runner = None
        if model.prepared is not None:
            await asyncio.to_thread(self._put_away, model.prepared)
        closed()
        await asyncio.to_thread(settle)

    def _put_away(self, prepared: PreparedModel) -> None:
        """Use a version's files no longer; remove them if this process brought them and nobody else uses them."""
        if prepared.held is not None:
            os.close(prepared.held)
        if prepared.folder in self._fetched and not self._way.environ.get("MLIMG_CACHE_DIR"):
            from mlimg.runtime.cache import remove_unused  # noqa: PLC0415 (brings what fetches: here it has fetched)

            try:
                remove_unused(prepared.folder)
            except LocalIOError as error:
                log.warning("%s stays: %s", prepared.folder, error)


def _came(prepared: PreparedModel) -> bool:
    return prepared.held is not None and not prepared.cache_hit


def _is_same(old: PreparedModel, new: PreparedModel) -> bool:
    return new.manifest is not None and (new.folder, new.manifest) == (old.folder, old.manifest)


def _check_name(name: str, prepared: PreparedModel) -> None:
    found = prepared.manifest.name if prepared.manifest else "model"
    if found != name:
        raise ConflictError(f"{prepared.source} is the model {found}, not {printable(name)[:100]}")


def _place(uri: ModelUri) -> str:
    """Where a reference points to, without version and digest of an image."""
    if uri.scheme == "oci":
        image = uri.image()
        return f"oci://{image.registry}/{image.repository}"
    return f"file://{uri.path()}" if uri.scheme == "file" else str(uri.place())


def _repository(uri: ModelUri) -> str:
    """Where the versions of a model lie: `…/name` of ``…/name/version``, if that is not a whole bucket or volume."""
    scheme, _, location = _place(uri).partition("://")
    path = PurePosixPath(location)
    is_deep = len([part for part in path.parts if part != "/"]) > 2
    return f"{scheme}://{path.parent if scheme != 'oci' and is_deep else path}"


def _is_beneath(place: str, prefix: str) -> bool:
    prefix = prefix.rstrip("/")
    return place == prefix or place.startswith(f"{prefix}/")


def _refusal(name: str, error: MlimgError) -> HTTPException:
    log.error("%s is not loaded: %s", printable(name)[:100], printable(str(error)))
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)
    hint = f" (hint: {error.hint})" if error.hint else ""
    return HTTPException(status, printable(error.message + hint), RETRY if status == 503 else None)
