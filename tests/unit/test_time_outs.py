"""Every time-out is in the documentation, with the number that holds."""

import re
from inspect import signature
from pathlib import Path

import pytest

from mlimg import client, confined
from mlimg.cli import run
from mlimg.engine import buildx, docker, endpoint, wire
from mlimg.means import Means
from mlimg.runtime.oci import Access, authorization, credentials, transport, upload
from mlimg.runtime.oci.cloud import exchange
from mlimg.runtime.server import connection
from mlimg.runtime.server.settings import Settings
from mlimg.runtime.stores import directory, oci_origin
from mlimg.runtime.stores.objects import settings
from mlimg.sources import hub

DOCS = Path(__file__).parents[2] / "docs"
SETTINGS = Settings.parse({})
SPEC = {
    "take a connection": [endpoint.CONNECT_SECONDS],
    "tell its version": [endpoint.ANSWER_SECONDS],
    "other answer of the engine": [docker.CALL_SECONDS],
    "a pull, a push": [wire.STALL_SECONDS],
    "for a build |": [signature(Means).parameters["build_timeout_seconds"].default],
    "that is silent": [buildx.STALL_SECONDS],
    "template to be rendered": [confined.CPU_SECONDS, confined.TIMEOUT_SECONDS],
    "folder store": [directory._LOCK_SECONDS],
    "to be ready": [signature(run.run).parameters["ready_timeout"].default],
    "after Ctrl-C": [run.STOP_SECONDS],
    "`predict`": [client.TIMEOUT_SECONDS],
    "list a repository": [hub._SECONDS],
}
CONTRACT = {
    "connection to a registry": [transport._CONNECT_SECONDS],
    "next byte of a registry": [Access().stall_seconds],
    "store a blob": [upload._ANSWER_SECONDS, upload._ANSWER_SECONDS_PER_GIB],
    "an object store": [settings._CONNECT_SECONDS, Access().stall_seconds, settings.REQUEST_SECONDS],
    "for a token": [authorization._TOKEN_SECONDS, credentials._HELPER_SECONDS],
    "a cloud's token service": [
        exchange._ANSWER_SECONDS,
        exchange._METADATA_CONNECT_SECONDS,
        exchange._METADATA_ANSWER_SECONDS,
    ],
    "on one of its connections": [oci_origin.RANGE_STALL_SECONDS],
    "request's body": [SETTINGS.limits.body_seconds],
    "a request's headers": [SETTINGS.limits.header_seconds, connection._RATE_SECONDS],
    "next request on a connection": [SETTINGS.limits.keep_alive_seconds],
    "after SIGTERM": [SETTINGS.grace_seconds],
}


def rows(page: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8").partition("## Time-outs")[2].partition("\n## ")[0]
    return [line for line in text.splitlines() if line.startswith("| ")]


@pytest.mark.parametrize(
    ("page", "what", "numbers"),
    [("spec.md", *item) for item in SPEC.items()] + [("runtime-contract.md", *item) for item in CONTRACT.items()],
)
def test_a_time_out_is_documented(page: str, what: str, numbers: list[float]) -> None:
    (row,) = (row for row in rows(page) if what in row)
    written = [float(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", row.split("|")[2])]
    assert written == numbers
