"""Workers that are threads: all of them are there before a model is."""

import threading
from typing import Any

import pytest

from mlimg.runtime.errors import LimitError
from mlimg.runtime.server.metadata import ModelMetadata
from mlimg.runtime.server.model import LoadedModel
from mlimg.runtime.server.runners.threads import ThreadRunner, Threads

HANDLER: Any = None
MODEL = LoadedModel(ModelMetadata("m", None, "python", (), ()), HANDLER, None)


def test_models_share_threads_that_are_started_once() -> None:
    before, threads = threading.active_count(), Threads(2)
    assert [ThreadRunner(MODEL, threads).free for _ in range(3)] == [True] * 3
    assert threading.active_count() == before + 2


def test_a_server_that_cannot_have_its_threads_does_not_become_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads = Threads(2)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(LimitError, match="2 threads"):
            ThreadRunner(MODEL, threads)
    assert ThreadRunner(MODEL, threads).free
