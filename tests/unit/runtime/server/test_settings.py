import logging

import pytest

from mlimg.runtime.errors import ModelError, SpecError
from mlimg.runtime.server import logs
from mlimg.runtime.server.settings import Settings, usable_cpus


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = Settings.parse({"PORT": "", "HOST": ""})
    assert (settings.host, settings.port) == ("0.0.0.0", 8080)
    assert settings.workers == usable_cpus() >= 1
    assert settings.queue == 16 * settings.workers
    assert settings.body_limit_bytes == 64 * 1024 * 1024
    assert settings.warm_up


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "٨"),
        ("MLIMG_WORKERS", "0"),
        ("MLIMG_WORKERS", "1.5"),
        ("MLIMG_GRACE_SECONDS", "9" * 5000),
        ("MLIMG_WARM_UP", "perhaps"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(SpecError, match=name):
        Settings.parse({name: value})


def test_an_unknown_log_level_is_refused() -> None:
    with pytest.raises(SpecError, match="LOG_LEVEL"):
        logs.set_up({"LOG_LEVEL": "loud"})


def record(message: str, error: BaseException | None = None) -> logging.LogRecord:
    exc_info = (type(error), error, None) if error else None
    return logging.LogRecord("x", logging.ERROR, "", 1, message, (), exc_info)


def test_a_log_line_is_one_line_whatever_it_holds() -> None:
    line = logs.OneLine(tracebacks=False).format(record("a\nforged\x1b[31m", ValueError("why\nmore")))
    assert line.isprintable()
    assert "(ValueError: why)" in line


def test_tracebacks_are_for_debugging() -> None:
    assert "\n" in logs.OneLine(tracebacks=True).format(record("a", ValueError("why")))


def test_the_last_word_is_one_line_with_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert logs.complain(ModelError("no\nmodel", hint="set MLIMG_MODEL")) == 12
    assert capsys.readouterr().err == "error: no\\nmodel (hint: set MLIMG_MODEL)\n"


def test_what_nobody_foresaw_is_70(capsys: pytest.CaptureFixture[str]) -> None:
    assert logs.complain(KeyError("x")) == 70
    assert capsys.readouterr().err == "error: this is a bug in the server: KeyError: 'x'\n"
