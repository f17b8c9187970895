import pytest

from mlimg.engine.border import engine_failed, remote_failed, shown


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("pull access denied for x, repository does not exist or may require 'docker login'", 15),
        ("unauthorized: authentication required", 15),
        ("no basic auth credentials", 15),
        ("manifest for localhost:5000/a:1 not found: manifest unknown: manifest unknown", 16),
        ("received unexpected HTTP status: 405 Method Not Allowed", 16),
        ('Get "https://r/v2/": dial tcp 127.0.0.1:9: connect: connection refused', 17),
        ('Get "https://r/v2/": net/http: TLS handshake timeout', 17),
        ("toomanyrequests: You have reached your pull rate limit", 17),
        ("received unexpected HTTP status: 503 Service Unavailable", 17),
        ("unexpected EOF", 17),
        ("no matching manifest for linux/s390x in the manifest list entries", 14),
        ("filesystem layer verification failed for digest sha256:12", 18),
        ("unexpected commit digest sha256:12, expected sha256:34: failed precondition", 18),
        ("write /var/lib/docker/tmp/GetImageBlob: no space left on device", 14),
    ],
)
def test_what_an_engine_says_of_a_registry_has_its_class(words: str, status: int) -> None:
    """D8, D7."""
    assert remote_failed("pull x", words).status == status


def test_a_full_disk_is_told_with_what_helps() -> None:
    """D7."""
    assert "docker builder prune" in engine_failed("load", "write /x: no space left on device").hint
    assert engine_failed("load", "invalid tar header").hint == ""


def test_foreign_words_are_one_printable_line_of_bounded_length() -> None:
    assert shown("a\n\tb \x1b[0m") == "a b \\x1b[0m"
    assert len(shown("x" * 10_000)) < 1000
    assert shown("https://user:password@host/x") == "https://***@host/x"
