"""Where a model that is not on this machine is, as a person writes it: one grammar for each kind of place.

An address never holds credentials; they come from the environment of whoever runs mlimg. What a place is asked for is
the business of the module of its kind.
"""

import re
from typing import Final
from urllib.parse import unquote, urlsplit

from mlimg.runtime.hosts import is_loopback, serves_metadata
from mlimg.runtime.manifest import model_path
from mlimg.runtime.reference import ModelUri

MAX_ADDRESS_CHARACTERS: Final = 2048
_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]*):")
_REPOSITORY_PART: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
# https://huggingface.co/docs/huggingface_hub/package_reference/utilities#huggingface_hub.utils.validate_repo_id
_HUB: Final = re.compile(rf"hf://({_REPOSITORY_PART}/{_REPOSITORY_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,254}}))?")
_REGISTERED: Final = re.compile(r"models:/([A-Za-z0-9][A-Za-z0-9 ._-]{0,254})(?:/([0-9]{1,9})|@([A-Za-z0-9_-]{1,255}))")
_BUCKET: Final = re.compile(r"(s3|gs|az)://([a-z0-9](?:[a-z0-9._-]{1,61}[a-z0-9]))/([A-Za-z0-9!_.=+:,@~/-]+?)/?")
_WEB: Final = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+/[A-Za-z0-9._~%!+,=:@/-]+")
_EXAMPLES: Final = {
    "https": "https://host/folder/model.onnx",
    "http": "http://127.0.0.1/model.onnx",
    "s3": "s3://bucket/folder",
    "gs": "gs://bucket/folder",
    "az": "az://container/folder",
    "oci": "oci://registry/repository/name:version",
    "hf": "hf://organisation/repository@revision",
    "models": "models:/name/3 or models:/name@alias",
}


def scheme_of(text: str) -> str:
    """The scheme of an address, "" for the path of a file or folder."""
    matched = _SCHEME.match(text)
    return matched[1] if matched else ""


def is_remote(text: str) -> bool:
    """Whether this is an address of a kind that models can be read from, and no path."""
    return scheme_of(text) in _EXAMPLES


def check_address(text: str) -> str:
    """Return `text` if it is an address of its kind. Raises ValueError with the rule that is broken."""
    scheme = scheme_of(text)
    if len(text) > MAX_ADDRESS_CHARACTERS:
        raise ValueError(f"an address has at most {MAX_ADDRESS_CHARACTERS} characters")
    if scheme in {"http", "https"}:
        _check_web(text)
    elif scheme == "oci":
        if "@" in text.partition("@sha256:")[0]:
            raise _malformed(text)
        ModelUri.parse(text)
    elif scheme == "hf":
        hub_repository(text)
    elif scheme == "models":
        registered_model(text)
    else:
        bucket_folder(text)
    return text


def web_file(text: str) -> str:
    """The name of the file that a web address ends in. Raises ValueError where that cannot be a model's."""
    return str(model_path(unquote(urlsplit(text).path.rpartition("/")[2])))


def hub_repository(text: str) -> tuple[str, str]:
    """The repository of an ``hf`` address, and the revision, "" where none is written. Raises ValueError."""
    matched = _HUB.fullmatch(text)
    if not matched or ".." in text or "--" in matched[1]:
        raise _malformed(text)
    return matched[1], matched[2] or ""


def registered_model(text: str) -> tuple[str, str, str]:
    """Name, version and alias of a ``models`` address; one of the last two is "". Raises ValueError."""
    matched = _REGISTERED.fullmatch(text)
    if not matched:
        raise _malformed(text)
    return matched[1], matched[2] or "", matched[3] or ""


def bucket_folder(text: str) -> tuple[str, str, str]:
    """Scheme, bucket and folder of an object store's address. Raises ValueError."""
    matched = _BUCKET.fullmatch(text)
    if not matched or any(part in {"", ".", ".."} for part in matched[3].split("/")):
        raise _malformed(text)
    return matched[1], matched[2], matched[3]


def _check_web(text: str) -> None:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise _malformed(text) from None
    if "@" in parts.netloc or parts.query or parts.fragment or "?" in text:
        # A query is where signed addresses carry their signature; the text itself may be a secret.
        raise ValueError("an address of a model has neither credentials nor a query in it: a spec is no place for them")
    if not _WEB.fullmatch(text) or text.endswith("/"):
        raise _malformed(text)
    if parts.scheme == "http" and not is_loopback(parts.netloc):
        raise ValueError("models come over https; plain http is for this machine itself")
    if serves_metadata(parts.netloc):
        raise ValueError("this is where machines are given their credentials, no place of models")
    web_file(text)


def _malformed(text: str) -> ValueError:
    # The text itself is not shown: people write keys and passwords into addresses.
    return ValueError(f"expected an address such as {_EXAMPLES[scheme_of(text)]}")
