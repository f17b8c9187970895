"""Files behind web addresses, with or without ranges: what stands behind a `FaultServer`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from tests.support.faults import Answer, Request


@dataclass
class WebFiles:
    """Answers ``GET`` of the files it has, by path without the first slash."""

    files: Mapping[str, bytes]
    ranges: bool = True

    def __call__(self, request: Request) -> Answer:
        data = self.files.get(unquote(urlsplit(request.path).path).lstrip("/"))
        if data is None:
            return Answer(404)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if not asked or not self.ranges:
            return Answer(200, {}, data)
        start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        if start >= len(data):
            return Answer(416, {"Content-Range": f"bytes */{len(data)}"})
        return Answer(206, {"Content-Range": f"bytes {start}-{end}/{len(data)}"}, data[start : end + 1])
