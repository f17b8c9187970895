"""What may stand in a text of the spec: one grammar a field, judged before anything is looked up.

Most of these texts reach commands, addresses or instructions of a Dockerfile, so the grammars are ASCII and
match the whole text (`$` would let a trailing newline pass). Free text is kept to one printable line. A message
shows little of a text it refuses, and nothing of one that may hold credentials.
"""

import re
from typing import Final

from mlimg.runtime.errors import printable
from mlimg.runtime.manifest import model_path
from mlimg.runtime.reference import ImageReference, ObjectPlace, check_tag, is_object_store
from mlimg.sources.address import check_address, is_remote
from mlimg.sources.selection import check_pattern

MAX_NAME_CHARACTERS: Final = 512  # of an image: a registry's host is at most 253, a repository 255
MAX_TEXT_BYTES: Final = 32 * 1024  # of a value in the environment; a line of a Dockerfile ends at 65,535
MAX_PATH_BYTES: Final = 4096

# Set by the server image itself; another value would hide the runtime or the one writable folder from it.
IMAGE_ENV: Final = frozenset({"HOME", "PYTHONHOME", "PYTHONPATH", "PYTHONSAFEPATH", "TMPDIR", "XDG_CACHE_HOME"})
OWN_SECRET: Final = "ca_bundle"  # noqa: S105 (a secret's name)

_NUMBER = r"[0-9]{1,5}"
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9A-Fa-f:]+\])"
_URL = re.compile(rf"(https?)://({_HOST})(?::({_NUMBER}))?(?:/[A-Za-z0-9._~%@+=/-]*)?")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_PLATFORM = re.compile(r"linux/(?:amd64(?:/v[234])?|arm64|arm(?:/v[567])?|386|loong64|ppc64le|riscv64|s390x)")
_PLATFORM_TWINS = {"x86_64": "amd64", "aarch64": "arm64", "arm64/v8": "arm64"}


def shown(text: str) -> str:
    """As much of a refused text as a message can bear, in backticks."""
    return f"`{printable(text if len(text) <= 60 else text[:60] + '…')}`"


def image_name(text: str) -> str:
    """A repository in a registry, without tag and digest. Raises ValueError."""
    reference = _parse_image(text)
    if reference.tag or reference.digest:
        raise ValueError(f"{shown(text)} has a tag or digest: mlimg gives the tag, write the name alone")
    return text


def image_reference(text: str) -> str:
    """An image as `docker pull` takes it. Raises ValueError."""
    _parse_image(text)
    return text


def version(text: str) -> str:
    """A version: it becomes a tag. Raises ValueError."""
    if len(text) > 128:
        raise ValueError(f"{len(text)} characters are too long for a tag: at most 128")
    return check_tag(text)


def model_name(text: str) -> str:
    """A model's name: the last part of a repository and a folder on any system. Raises ValueError."""
    if len(text) > 128 or not re.fullmatch(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*", text):
        raise ValueError(
            f"{shown(text)} cannot name a model: lower-case letters and digits, separated by `.`, `_`, `__` or `-`"
        )
    model_path(text)
    return text


def template(text: str) -> str:
    """A built-in template's name, or a folder that is written as a path. Raises ValueError."""
    if text.startswith(("./", "../", "/")):
        return path(text)
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", text):
        raise ValueError(f"{shown(text)} is neither a template's name nor a folder written as ./folder")
    return text


def path(text: str) -> str:
    """A path as it is written; whether it stays in the project is another question. Raises ValueError."""
    scheme = _SCHEME.match(text)
    if scheme:
        raise ValueError(f"`{scheme[1]}:` is not supported here: expected the path of a file or folder")
    if "://" in text or "models:/" in text:  # so that who reads the value later can tell a path from an address
        raise ValueError("expected the path of a file or folder, not an address")
    if not text or len(text.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        raise ValueError(f"expected a path of 1 to {MAX_PATH_BYTES} bytes")
    if not text.isprintable() or "\\" in text:
        raise ValueError(f"{shown(text)} has a control character or a backslash")
    if text.startswith("-"):
        raise ValueError(
            f"{shown(text)} starts with `-`: commands would read an option; write ./{printable(text[:20])}"
        )
    if text.startswith("~") or "$" in text:
        raise ValueError(f"{shown(text)}: `~` and `$` are not expanded; write the path itself")
    if re.search(r"%[0-9A-Fa-f]{2}", text):
        raise ValueError(f"{shown(text)} is percent-encoded; write the path itself")
    return text


def source(text: str) -> str:
    """Where the model is: a path, or an address of a kind that models are read from. Raises ValueError."""
    return check_address(text) if is_remote(text) else path(text)


def pattern(text: str) -> str:
    """A pattern of files below the model's folder. Raises ValueError."""
    return check_pattern(text)


def sha256(text: str) -> str:
    """A file's sha256 as `sha256sum` prints it. Raises ValueError."""
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError(f"{shown(text)} is not a sha256: 64 hex digits in lower case")
    return text


def store(text: str) -> str:
    """Where model artifacts go: a registry's repository, a prefix of a bucket, or a folder. Raises ValueError."""
    scheme = _SCHEME.match(text)
    if scheme and scheme[1] == "oci" and text.startswith("oci://"):
        image_name(text.removeprefix("oci://"))
    elif is_object_store(text):
        if not re.fullmatch(r"[A-Za-z0-9._=/-]*", str(ObjectPlace.parse(text).prefix)):
            raise ValueError("the prefix in a bucket is written with letters, digits, `.`, `_`, `=`, `-` and `/`")
    elif scheme:
        raise ValueError(
            f"`{scheme[1]}:` is not supported here: expected oci://registry/repository, s3://bucket/prefix (gs, az) "
            "or a folder"
        )
    else:
        path(text)
    return text


def option_name(text: str) -> str:
    """The name of a template's option. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", text):
        raise ValueError(f"{shown(text)} cannot name an option: letters, digits, `_` and `-`")
    return text


def text_line(text: str) -> str:
    """One printable line, in any script. Raises ValueError."""
    if not text.isprintable():
        raise ValueError(f"{shown(text)} has a line break or another unprintable character")
    if len(text.encode()) > MAX_TEXT_BYTES:
        raise ValueError(f"the text is longer than {MAX_TEXT_BYTES // 1024} KiB")
    return text


def env_name(text: str) -> str:
    """The name of an environment variable that the image may fix. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,127}", text):
        raise ValueError(f"{shown(text)} cannot name a variable: letters, digits and `_`, not starting with a digit")
    if text.upper().startswith("MLIMG_"):
        # The image is the same for every model and place; these say which model, where, how: the deployment's part.
        raise ValueError(f"`{text}` is given when a container starts, never fixed in its image")
    if text in IMAGE_ENV:
        raise ValueError(f"`{text}` is set by the image itself")
    return text


def platform(text: str) -> str:
    """A platform whose containers the templates can make. Raises ValueError."""
    if not _PLATFORM.fullmatch(text):
        twin = _PLATFORM_TWINS.get(text.removeprefix("linux/"))
        better = f"; did you mean linux/{twin}?" if twin else ""
        raise ValueError(f"{shown(text)} is not a platform such as linux/amd64, linux/arm64 or linux/arm/v7{better}")
    return text


def index_url(text: str) -> str:
    """The address of a package index. Raises ValueError, without the text: credentials may be in it."""
    if "@" in text.split("://", 1)[-1].split("/", 1)[0]:
        raise ValueError("the address has credentials in it: put them in a netrc file and name it in build.secrets")
    matched = _URL.fullmatch(text)
    if not matched or len(text) > 2048:
        raise ValueError("expected an address such as https://mirror.example.com/simple, without query")
    scheme, host, port = matched.groups()
    if scheme == "http" and not (host in {"localhost", "[::1]"} or re.fullmatch(r"127(?:\.[0-9]{1,3}){3}", host)):
        raise ValueError("packages come over https; plain http is for this machine itself")
    if port is not None and not 0 < int(port) < 65536:
        raise ValueError(f"{port} is not a port")
    return text


def package_name(text: str) -> str:
    """A Python package's name as indexes have it. Raises ValueError.

    https://packaging.python.org/en/latest/specifications/name-normalization/
    """
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?", text):
        raise ValueError(f"{shown(text)} is not the name of a Python package")
    return re.sub(r"[-_.]+", "-", text).lower()


def secret_id(text: str) -> str:
    """The id of a build secret; its file comes from ``--secret`` or ``MLIMG_SECRET_<ID>``. Raises ValueError."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", text):
        raise ValueError(f"{shown(text)} cannot name a secret: lower-case letters, digits and `_`")
    if text == OWN_SECRET:
        raise ValueError(f"`{OWN_SECRET}` is mounted in every build: give it by --ca-bundle")
    return text


def registry_host(text: str) -> str:
    """A registry as image names have it: ``host[:port]``. Raises ValueError."""
    try:
        # Whether a host alone names a registry is decided by what may stand before the first `/` of an image.
        named = len(text) <= 253 and ImageReference.parse(f"{text}/x").registry == text
    except ValueError:
        named = False
    if not named:
        raise ValueError(f"{shown(text)} is not a registry's host[:port], such as registry.lab:5000")
    return text


def distinct(items: tuple[str, ...]) -> tuple[str, ...]:
    """A list that names nothing twice. Raises ValueError."""
    for position, item in enumerate(items):
        if item in items[:position]:
            raise ValueError(f"{shown(item)} is listed twice")
    return items


def _parse_image(text: str) -> ImageReference:
    if len(text) > MAX_NAME_CHARACTERS:
        raise ValueError(f"an image's name has at most {MAX_NAME_CHARACTERS} characters")
    if "://" in text:
        raise ValueError("an image is named without scheme: registry.example.com/folder/name")
    return ImageReference.parse(text)
