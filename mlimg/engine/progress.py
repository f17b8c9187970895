"""What `docker buildx build --progress=plain` says, understood.

The plain form is the one that every version of buildx has: ``#5 [build 2/4] RUN …`` opens a step, ``#5 0.12 text`` is
its output, ``#5 DONE 0.1s``, ``#5 CACHED``, ``#5 CANCELED`` or ``#5 ERROR: …`` close it.
https://github.com/moby/buildkit/blob/v0.13.0/util/progress/progressui/printer.go
"""

import re
from collections import deque
from dataclasses import dataclass, field
from typing import Final

LOG_LINES: Final = 20
_LINE = re.compile(r"#(\d+) (.*)")
_OUTPUT = re.compile(r"(\d+\.\d+) (.*)")
_CLOSED = re.compile(r"(?:DONE \d|CACHED$|CANCELED$)")
_ERROR = "ERROR: "


@dataclass(slots=True)
class BuildStep:
    """A step of the build: its title as the builder prints it, and the last lines it printed."""

    title: str
    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    error: str = ""


class BuildProgress:
    """Follows a build by its lines: the step under way, and the one that failed."""

    def __init__(self) -> None:
        self._steps: dict[str, BuildStep] = {}
        self.failed: BuildStep | None = None
        self.summary = ""  # the builder's own last word, where no step failed
        self.step: BuildStep | None = None  # the one under way

    def read(self, line: str) -> bool:
        """Take a line; tell whether `step` is another one now."""
        matched = _LINE.fullmatch(line)
        if not matched:
            # Both `ERROR: failed to solve: …` and the docker command's own errors.
            if line.startswith(_ERROR):
                self.summary = line.removeprefix(_ERROR).removeprefix("failed to solve: ")
            return False
        number, text = matched.groups()
        step = self._steps.get(number)
        if step is None:
            step = self._steps[number] = BuildStep(text)
            return self._begin(step)
        if text == step.title:  # printed again after another step's output
            return self._begin(step)
        if text.startswith(_ERROR):
            step.error = text.removeprefix(_ERROR)
            # The steps beside a failed one are cancelled, which is an error of theirs too.
            if self.failed is None or "context canceled" in self.failed.error:
                self.failed = step
        elif output := _OUTPUT.fullmatch(text):
            step.log.append(output.group(2))
        elif not _CLOSED.match(text):
            step.log.append(text)
        return False

    def _begin(self, step: BuildStep) -> bool:
        changed, self.step = step is not self.step, step
        return changed
