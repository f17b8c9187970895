"""Streams from an engine that lies, cuts or never stops."""

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from mlimg.engine import wire
from mlimg.engine.border import engine_errors
from mlimg.engine.docker import Engine
from mlimg.runtime.errors import CredentialsError, EngineError, MlimgError
from tests.unit.engine.conftest import StubEngine

DIGEST = "sha256:" + "ab" * 32
AUX = b'{"progressDetail":{},"aux":{"Tag":"1","Digest":"' + DIGEST.encode() + b'","Size":10}}\r\n'
NAME = "registry.example.com/a/b:1"
PUSH = "POST /images/registry.example.com/a/b/push"


@pytest.fixture
def engine(stub: StubEngine) -> Iterator[Engine]:
    engine = Engine.connect(stub.env, lambda _host: None)
    yield engine
    engine.close()


def test_a_push_tells_the_digest(stub: StubEngine, engine: Engine) -> None:
    said: list[str] = []
    stub.answers[PUSH] = lambda out: out.write(b'{"status":"Pushing","id":"abc"}\r\n' + AUX)
    assert engine.push(NAME, said.append).text == DIGEST
    assert said == ["abc: Pushing"]


@pytest.mark.parametrize(
    "noise", [b"not json\n", b'{"status": "\xff\xfe"}\n', b"[1, 2]\n", b"{" * 5000 + b"\n", b"\n\n", b"null\n"]
)
def test_noise_in_the_stream_is_passed_over(stub: StubEngine, engine: Engine, noise: bytes) -> None:
    """D4."""
    stub.answers[PUSH] = lambda out: out.write(noise + AUX)
    assert engine.push(NAME).text == DIGEST


def test_a_line_of_many_megabytes_takes_no_memory(stub: StubEngine, engine: Engine) -> None:
    """D4."""
    written = 0

    def flood(out: Any) -> None:
        nonlocal written
        for _ in range(100):
            written += out.write(b"x" * 1_000_000)
        out.write(b"\n" + AUX)

    stub.answers[PUSH] = flood
    tracemalloc.start()
    try:
        assert engine.push(NAME).text == DIGEST
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert written == 100_000_000
    assert peak < 16_000_000


@pytest.fixture
def silence() -> Iterator[threading.Event]:
    """Set when an engine that says nothing may end."""
    event = threading.Event()
    yield event
    event.set()


def test_an_engine_that_falls_silent_in_a_stream_is_given_up(
    stub: StubEngine, engine: Engine, silence: threading.Event
) -> None:
    """D2: after the first line; the twin says its second in time."""
    waits: list[float] = []

    def says(seconds: float) -> Callable[[Any], None]:
        def talk(out: Any) -> None:
            out.write(b'{"status":"Pushing"}\n')
            out.flush()
            waits.append(seconds)
            silence.wait(seconds)
            out.write(AUX)

        return talk

    def push() -> list[wire.Message]:
        with engine_errors("push"), wire.call(engine.client, "POST", PUSH.split()[1], stall_seconds=0.5) as response:
            return list(wire.messages(response))

    stub.answers[PUSH] = says(30)
    started = time.monotonic()
    with pytest.raises(EngineError) as failed:
        push()
    assert 0.4 < time.monotonic() - started < 3
    assert waits == [30]
    assert failed.value.status == 14
    stub.answers[PUSH] = says(0.2)
    assert len(push()) == 2


def test_an_engine_that_falls_silent_after_its_greeting_is_given_up(
    stub: StubEngine, silence: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D2."""
    monkeypatch.setattr("mlimg.engine.docker.CALL_SECONDS", 0.5)
    stub.answers["GET /images/a:1/json"] = lambda _out: silence.wait(30)
    with closing(Engine.connect(stub.env, lambda _host: None)) as engine:
        assert engine.image("b:1") is None  # the twin: it answers, and has no such image
        with pytest.raises(EngineError) as failed:
            engine.image("a:1")
    assert any("/images/a:1/json" in asked for asked in stub.asked)
    assert failed.value.status == 14


def test_a_stream_that_is_cut_is_no_success(stub: StubEngine, engine: Engine) -> None:
    """D4: the twin, whole, is the first test."""
    stub.answers[PUSH] = lambda out: out.write(AUX[:-20])
    with pytest.raises(EngineError, match="digest"):
        engine.push(NAME)


def test_a_refusal_in_the_stream_is_told_in_one_line(stub: StubEngine, engine: Engine) -> None:
    words = b"denied: \\u001b[31m you \\n may not https://me:s3cret@host/"
    stub.answers[PUSH] = lambda out: out.write(b'{"errorDetail":{"message":"' + words + b'"},"error":"x"}\r\n')
    with pytest.raises(CredentialsError) as failed:
        engine.push(NAME)
    assert failed.value.message.isprintable()
    assert "s3cret" not in failed.value.message


def test_an_image_that_is_loaded_and_not_unpacked_is_refused() -> None:
    words = f"Error unpacking image {DIGEST}: no space left on device\n"
    assert wire.refusal({"stream": words}) == words
    assert wire.refusal({"stream": f"Loaded image ID: {DIGEST}\n"}) is None


@pytest.mark.parametrize("answer", [{}, {"Id": 1}, [], "x", {"RootFS": {}, "Os": "linux"}])
def test_an_image_described_in_nonsense_is_an_error_of_the_engine(
    stub: StubEngine, engine: Engine, answer: object
) -> None:
    stub.answers["GET /images/a:1/json"] = answer
    with pytest.raises(MlimgError) as failed:
        engine.image("a:1")
    assert failed.value.status == 14


def test_an_image_that_is_not_there_is_none(engine: Engine) -> None:
    assert engine.image("a:1") is None
