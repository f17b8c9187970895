"""The one route of platforms that know nothing of models: what is asked is told by the body and its headers."""

from functools import lru_cache
from typing import Final, NamedTuple

from starlette.exceptions import HTTPException
from starlette.types import Scope

from mlimg.runtime.server.body import parse
from mlimg.runtime.server.exchange import Codec, Query, Reply
from mlimg.runtime.server.http import header
from mlimg.runtime.server.metadata import Arrays, ModelMetadata
from mlimg.runtime.server.protocols.csv_rows import read_csv, write_csv
from mlimg.runtime.server.protocols.endpoint import Predict
from mlimg.runtime.server.protocols.instances import InstancesCodec, read_rows
from mlimg.runtime.server.protocols.v2_codec import V2Codec
from mlimg.runtime.server.service import Service

JSON: Final = "application/json"
CSV: Final = "text/csv"
_ANSWERS: Final = {"": JSON, "*/*": JSON, "application/*": JSON, JSON: JSON, "text/*": CSV, CSV: CSV}


def predict(service: Service) -> Predict:
    """The endpoint of such a route: it asks the server's only model."""
    return Predict(service, codec, "invocations")


def codec(scope: Scope) -> Codec:
    """How to read a request and answer it; what is not said to be CSV is JSON. Raises HTTPException: 406."""
    return _invocation(header(scope, b"content-type"), header(scope, b"accept"))


@lru_cache(64)  # clients of one kind all send the same
def _invocation(content_type: str, accept: str) -> Codec:
    given = _media_types(content_type)[0]
    wanted = next((kind for kind in _media_types(accept) if kind in _ANSWERS), None)
    if wanted is None:
        raise HTTPException(406, f"answers are {JSON} or {CSV}")
    return Invocation(given == CSV, _ANSWERS[wanted] == CSV)


class Invocation(NamedTuple):
    """CSV rows, `{"inputs": [...]}` of the protocol V2, `{"instances": [...]}`, or a bare list of instances.

    A request of V2 is answered as such, the others by `predictions`; each by CSV where that is wanted.
    """

    from_csv: bool
    to_csv: bool

    def read(self, model: ModelMetadata, body: bytes) -> Query:
        """Read a request; its note is how to answer. Raises InputError."""
        if self.from_csv:
            return self._answered_by(InstancesCodec(), Query(read_csv(model, body)))
        value = parse(body)
        if isinstance(value, list):
            return self._answered_by(InstancesCodec(), Query(read_rows(model, value)))
        v2 = isinstance(value, dict) and "inputs" in value
        chosen: Codec = V2Codec() if v2 else InstancesCodec()
        return self._answered_by(chosen, chosen.read(model, body))

    def write(self, model: ModelMetadata, query: Query, tensors: Arrays) -> Reply:
        """Write the answer. Raises InputError, PredictionError."""
        if self.to_csv:
            return Reply(write_csv(tensors), CSV)
        chosen, note = query.note
        reply: Reply = chosen.write(model, query._replace(note=note), tensors)
        return reply

    def _answered_by(self, chosen: Codec, query: Query) -> Query:
        return query._replace(note=(chosen, query.note))


def _media_types(value: str) -> list[str]:
    return [part.partition(";")[0].strip().lower() for part in value.split(",")]
