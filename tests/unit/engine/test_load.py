from dataclasses import replace
from pathlib import Path

import pytest

from mlimg.engine.docker import EngineInfo
from mlimg.engine.load import check_room
from mlimg.plan import Platform
from mlimg.runtime.errors import EngineError


@pytest.fixture
def info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineInfo:
    """An engine on this machine, with a megabyte left on its disk."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**20}))
    platform = Platform("linux", "amd64")
    return EngineInfo("id", "26.1.5", "1.44", "graph", "default", "unix:///x", platform, tmp_path, is_local=True)


def test_an_archive_that_does_not_fit_twice_is_refused_before_it_is_sent(info: EngineInfo) -> None:
    """D7"""
    check_room(info, 2**19)
    with pytest.raises(EngineError, match=r"needs 1048578 bytes in .* and 1048576 are free"):
        check_room(info, 2**19 + 1)


def test_of_an_engine_elsewhere_nothing_is_known(info: EngineInfo) -> None:
    check_room(replace(info, is_local=False), 2**40)


def test_a_data_root_that_cannot_be_seen_is_no_failure(info: EngineInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    def unseen(_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("shutil.disk_usage", unseen)
    check_room(info, 2**40)
