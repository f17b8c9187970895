"""Downloads the pinned uv from the package index and checks it. Standard library only: any base with a Python will do.

Why this and not an image or a script from the network: `docs/decisions/0001-uv-in-the-build-stage.md`.
"""

import hashlib
import html
import json
import netrc
import os
import platform
import re
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from base64 import b64encode
from pathlib import Path

VERSION = "0.13.9"
# Statically linked builds, which run on glibc and on musl alike: the wheel and its sha256 for each machine.
WHEELS = {
    "x86_64": (
        f"uv-{VERSION}-py3-none-musllinux_1_1_x86_64.whl",
        "2c45530751517d6c3bbc69a19473f6effe47cce047bede01ffd8af7ea7b36b25",
    ),
    "aarch64": (
        f"uv-{VERSION}-py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64.whl",
        "5435c5ce14a56431208ca0996416d310f1598e8c2c8ba707688985a16bb82dbe",
    ),
}
TIMEOUT_SECONDS = 60


def get_uv(index, cache, target):
    """Put the uv binary at `target`; `cache` keeps the wheel for the next build."""
    machine = platform.machine()
    if machine not in WHEELS:
        sys.exit(f"mlimg installs packages with uv, which it has for {' and '.join(WHEELS)}, not for {machine}")
    name, sha256 = WHEELS[machine]
    wheel = cache / name
    if not wheel.is_file() or _sha256(wheel.read_bytes()) != sha256:
        _download(index.rstrip("/") + "/uv/", name, sha256, wheel)
    with zipfile.ZipFile(wheel) as archive:
        target.write_bytes(archive.read(f"uv-{VERSION}.data/scripts/uv"))
    target.chmod(0o755)


def _download(page_url, name, sha256, wheel):
    page_url, page, media_type = _fetch(page_url, "application/vnd.pypi.simple.v1+json, text/html;q=0.1")
    link = _link(page.decode(), media_type, name)
    if link is None:
        sys.exit(f"{page_url} does not list {name}, with which mlimg installs packages")
    url, data, _ = _fetch(urllib.parse.urljoin(page_url, link), "*/*")
    if _sha256(data) != sha256:
        sys.exit(f"{url} has sha256 {_sha256(data)}, but {name} has {sha256}")
    wheel.parent.mkdir(parents=True, exist_ok=True)
    # Builds share the cache, and most of them have the same process ids.
    handle, partial = tempfile.mkstemp(dir=wheel.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(partial).replace(wheel)


def _link(page, media_type, name):
    """The address of the file `name` on a page of the simple API (PEP 503 in HTML, PEP 691 in JSON)."""
    if media_type.endswith("json"):
        links = [file["url"] for file in json.loads(page)["files"]]
    else:
        links = [html.unescape(link) for link in re.findall(r"""href\s*=\s*["']([^"']+)["']""", page, re.IGNORECASE)]
    for link in links:
        path = urllib.parse.unquote(urllib.parse.urlsplit(link).path)
        if path.rsplit("/", 1)[-1] == name:
            return urllib.parse.urldefrag(link).url
    return None


def _fetch(url, accept):
    """Get a whole answer: its final address, body and media type."""
    headers = {"Accept": accept, "User-Agent": "mlimg"}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (the spec's https address, or its pages' links)
    login = _login(urllib.parse.urlsplit(url).hostname)
    if login:
        # A redirect may lead to another host, which has no business with the password.
        request.add_unredirected_header("Authorization", "Basic " + b64encode(login.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
            return answer.url, answer.read(), answer.headers.get_content_type()
    except urllib.error.HTTPError as error:
        hint = "\nthe secret `netrc` may hold credentials for it" if error.code in (401, 403) else ""
        sys.exit(f"{url} answers {error.code} {error.reason}{hint}")
    except OSError as error:
        reason = getattr(error, "reason", error)
        hint = "\n`mlimg build --ca-bundle FILE` gives the build your company's CA" if "CERT" in str(reason) else ""
        sys.exit(f"{url} cannot be fetched: {reason}{hint}")


def _login(host):
    path = os.environ.get("NETRC")
    entry = netrc.netrc(path).authenticators(host) if path else None
    return f"{entry[0]}:{entry[2]}" if entry else None


def _sha256(data):
    return hashlib.sha256(data).hexdigest()
