"""Foreign output as lines fit to be shown: of bounded length, without terminal codes or control characters."""

import codecs
import re
from collections.abc import Callable
from typing import Final

from mlimg.runtime.errors import printable

MAX_LINE_LENGTH: Final = 8 * 1024
_TERMINAL_CODE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")

OnLine = Callable[[str], None]
"""Called with each line, standard output and error as one."""


class Lines:
    """Cuts what a program prints into lines, however it comes; no line takes more memory than it may show."""

    def __init__(self, on_line: OnLine) -> None:
        self._on_line = on_line
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending = ""
        self._skipping = False  # the rest of a line whose beginning was shown

    def feed(self, data: bytes, *, final: bool = False) -> None:
        """Take what was read; with `final`, also the line that was not ended."""
        # Progress bars rewrite their line by a carriage return: each state is a line.
        *lines, self._pending = re.split(r"[\r\n]", self._pending + self._decoder.decode(data, final))
        for line in lines:
            self._emit(line)
            self._skipping = False
        if final or len(self._pending) > MAX_LINE_LENGTH:
            self._emit(self._pending)
            self._skipping, self._pending = True, ""

    def _emit(self, line: str) -> None:
        if not self._skipping and (clean := clean_line(line)):
            self._on_line(clean)


def clean_line(line: str) -> str:
    """One line without terminal codes and control characters, cut at a length that no honest line has."""
    cut = line[:MAX_LINE_LENGTH]
    text = printable(_TERMINAL_CODE.sub("", cut).expandtabs().rstrip())
    return text + "…" if len(line) > MAX_LINE_LENGTH else text
