"""What a command collects before it acts: secrets, certificates, the pattern."""

import ssl
from pathlib import Path

import pytest

from mlimg.cli import session
from mlimg.runtime.errors import LocalIOError, UsageError

PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


@pytest.fixture(autouse=True)
def no_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLIMG_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)


def write(path: Path, text: str = "secret") -> Path:
    path.write_text(text)
    return path


def test_a_secret_comes_from_the_flag_else_from_its_variable(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    environment = {"MLIMG_SECRET_MY_NETRC": str(one), "MLIMG_SECRET_TOKEN": str(one)}
    found = session.secrets(["my-netrc", "token"], [f"token={two}"], environment)
    assert found == {"my-netrc": one, "token": two}


@pytest.mark.parametrize("given", ["hunter2", "token=", "token=/nonexistent", "other=/etc/hostname"])
def test_a_wrong_secret_is_refused_and_never_repeated(given: str) -> None:
    """I10: somebody may have put the secret itself there."""
    with pytest.raises(UsageError) as caught:
        session.secrets(["token"], [given], {})
    assert "hunter2" not in caught.value.message + caught.value.hint


def test_no_bundle_is_made_where_none_is_asked_for() -> None:
    with session.ca_bundle(None) as bundle:
        assert bundle is None


def test_a_bundle_holds_the_systems_roots_too_and_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = write(tmp_path / "roots.pem", PEM.replace("MIIB", "ROOT"))
    monkeypatch.setattr(session, "_SYSTEM_BUNDLES", (str(roots),))
    monkeypatch.setattr(
        ssl, "get_default_verify_paths", lambda: ssl.DefaultVerifyPaths("", "", "", "/nonexistent", "", "")
    )
    with session.ca_bundle(write(tmp_path / "ours.pem", PEM)) as bundle:
        assert bundle is not None
        text = bundle.read_text()
        assert "ROOT" in text
        assert "MIIB" in text
        assert bundle.parent.stat().st_mode & 0o777 == 0o700
    assert not bundle.exists()
    # The system's own file is not doubled.
    with session.ca_bundle(roots) as bundle:
        assert bundle is not None
        assert bundle.read_text().count("ROOT") == 1


def test_the_flag_wins_over_our_variable_and_that_over_everybodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_SYSTEM_BUNDLES", ())
    for name, variable in (("everybody", "SSL_CERT_FILE"), ("our", "MLIMG_CA_BUNDLE")):
        monkeypatch.setenv(variable, str(write(tmp_path / name, PEM.replace("MIIB", name))))
        with session.ca_bundle(None) as bundle:
            assert bundle is not None
            assert f"\n{name}\n" in bundle.read_text()
    with session.ca_bundle(write(tmp_path / "flag", PEM.replace("MIIB", "flag"))) as bundle:
        assert bundle is not None
        assert "\nour\n" not in bundle.read_text()


def test_a_bundle_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no certificates"), session.ca_bundle(write(tmp_path / "x", "junk")):
        pass
    with pytest.raises(LocalIOError, match="--ca-bundle"), session.ca_bundle(tmp_path / "missing"):
        pass


def test_an_error_inside_is_not_taken_for_one_of_the_bundle(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), session.ca_bundle(write(tmp_path / "x", PEM)):
        Path("/nonexistent").read_bytes()


@pytest.mark.parametrize(("epoch", "created"), [("0", "1970-01-01T00:00:00Z"), ("86400", "1970-01-02T00:00:00Z")])
def test_created_follows_source_date_epoch(epoch: str, created: str) -> None:
    assert session._created(epoch) == created


@pytest.mark.parametrize("epoch", ["now", "-1", "1.5", "9" * 12])
def test_another_source_date_epoch_is_refused(epoch: str) -> None:
    with pytest.raises(UsageError):
        session._created(epoch)
