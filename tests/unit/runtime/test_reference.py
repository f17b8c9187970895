import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlimg.runtime.digest import Digest
from mlimg.runtime.reference import ImageReference, ModelUri, check_tag

DIGEST = Digest.of(b"")


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag"),
    [
        ("python", "docker.io", "library/python", None),
        ("python:3.13-slim", "docker.io", "library/python", "3.13-slim"),
        ("me/app:1", "docker.io", "me/app", "1"),
        ("index.docker.io/me/app", "docker.io", "me/app", None),
        ("docker.io/python", "docker.io", "library/python", None),
        ("registry.example.com/a/b:1", "registry.example.com", "a/b", "1"),
        ("localhost/a", "localhost", "a", None),
        ("localhost:5000/a", "localhost:5000", "a", None),
        ("localhost:5000", "docker.io", "library/localhost", "5000"),
        ("[::1]:5000/a:1", "[::1]:5000", "a", "1"),
        ("[2001:db8::1]/a", "[2001:db8::1]", "a", None),
        ("Registry/a", "Registry", "a", None),
        ("registry.lab:65535/a", "registry.lab:65535", "a", None),
    ],
)
def test_references_are_read_as_docker_reads_them(text: str, registry: str, repository: str, tag: str | None) -> None:
    assert ImageReference.parse(text) == ImageReference(registry, repository, tag)
    assert ImageReference.parse(f"{text}@{DIGEST}") == ImageReference(registry, repository, tag, DIGEST)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "@",
        "a@",
        "a:",
        "A",
        "a/B",
        "a//b",
        "/a",
        "a/",
        "a..b",
        "a/../b",
        "-a",
        "a:1\n",
        "a b",
        "a:" + "x" * 129,
        "a:1.0+cu121",
        "a:-x",
        "a:.x",
        "a@sha256:00",
        "a@sha512:" + "0" * 128,
        "registry.lab:65536/a",
        "registry.lab:/a",
        "registry_lab.com/a",
        "x/" + "a" * 256,
        "user:password@registry.example.com/a",
    ],
)
def test_what_no_registry_takes_is_refused_with_the_rule(text: str) -> None:
    """A11"""
    with pytest.raises(ValueError, match=r"is not a|cannot be a tag|without a tag|expected sha256"):
        ImageReference.parse(text)


def test_a_tag_of_128_characters_is_taken() -> None:
    assert check_tag("x" * 128) == "x" * 128


COMPONENT = st.from_regex(r"[a-z0-9]+([._-][a-z0-9]+)?", fullmatch=True).filter(lambda text: len(text) < 30)
REGISTRY = st.sampled_from(["docker.io", "localhost", "localhost:5000", "r.example.com", "[::1]:5000", "127.0.0.1:80"])


@given(
    REGISTRY,
    st.lists(COMPONENT | st.just("library") | st.just("localhost"), min_size=1, max_size=4),
    st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True),
    st.none() | st.just(DIGEST),
)
def test_a_reference_is_read_back_as_it_was_written(
    registry: str, parts: list[str], tag: str | None, digest: Digest | None
) -> None:
    repository = "/".join(parts)
    assume(registry != "docker.io" or len(parts) > 1)
    reference = ImageReference(registry, repository, tag, digest)
    assert ImageReference.parse(str(reference)) == reference


def test_docker_hub_names_are_short_only_where_docker_s_are() -> None:
    assert ImageReference.parse("docker.io/library/python").name == "python"
    assert ImageReference.parse("docker.io/library/a/b").name == "library/a/b"
    assert ImageReference.parse("docker.io/foo.bar/x").name == "docker.io/foo.bar/x"


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:5000", "LocalHost:1", "127.0.0.1", "127.1.2.3:5000", "[::1]:5000"]
)
def test_this_machine_s_registries_are_loopback(host: str) -> None:
    assert ImageReference(host, "a").is_loopback


@pytest.mark.parametrize(
    "host",
    ["127.example.com", "127.0.0.1.nip.io:5000", "localhost.example.com", "128.0.0.1", "[::2]", "[fe80::1]:5000"],
)
def test_names_that_only_look_like_loopback_are_not(host: str) -> None:
    """Plain HTTP goes to loopback without being asked for: a host of somebody else must not pass for it."""
    assert not ImageReference(host, "a").is_loopback


def test_pinning_and_tagging_change_one_thing() -> None:
    reference = ImageReference.parse("r.example.com/a:1")
    assert str(reference.with_digest(DIGEST)) == f"r.example.com/a:1@{DIGEST}"
    assert str(reference.with_digest(DIGEST).with_tag("2")) == "r.example.com/a:2"


def test_an_oci_uri_names_an_image_by_tag_or_digest() -> None:
    uri = ModelUri.parse(f"oci://r.example.com/models/digits:3@{DIGEST}")
    assert str(uri.image()) == f"r.example.com/models/digits:3@{DIGEST}"
    assert str(ModelUri.parse(f"oci://r.example.com/m@{DIGEST}").image()) == f"r.example.com/m@{DIGEST}"
    with pytest.raises(ValueError, match="needs a version"):
        ModelUri.parse("oci://r.example.com/m")


@pytest.mark.parametrize(
    "text", [f"r.example.com/m@{DIGEST}", "r.example.com/m:3", f"r.example.com/m:3@{DIGEST}", "m:1"]
)
def test_the_uri_of_an_image_is_read_back(text: str) -> None:
    reference = ImageReference.parse(text)
    uri = ModelUri.of_image(reference)
    assert ModelUri.parse(str(uri)) == uri
    assert uri.image() == reference


def test_a_file_uri_names_an_absolute_folder() -> None:
    assert str(ModelUri.parse("file:///mnt/models").path()) == "/mnt/models"
    assert ModelUri.parse(f"file:///mnt/m@{DIGEST}").digest == DIGEST
    for text in ("file://mnt", "file:///mnt/../etc", "file://", "file://host/x\x1b[31m"):
        with pytest.raises(ValueError, match="absolute folder") as caught:
            ModelUri.parse(text)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text", ["", "models", "oci:/x", "://x", "OCI://x", "oci://", "oci://r/X:1", "oci://r/x:1@md5:0"]
)
def test_what_is_no_model_uri_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        ModelUri.parse(text)


def test_a_pinned_uri_is_the_same_model_at_one_digest() -> None:
    assert str(ModelUri.parse("file:///m").pinned(DIGEST)) == f"file:///m@{DIGEST}"
