"""What a container starts: ``python -m mlimg.runtime serve | exec -- CMD… | fetch URI FOLDER``."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from mlimg.runtime import init

USAGE: Final = """\
usage: python -m mlimg.runtime serve               serve the model over HTTP
       python -m mlimg.runtime exec -- CMD...      fetch and verify the model, then become CMD
       python -m mlimg.runtime fetch URI FOLDER    fetch and verify a model, print its folder
"""


def main(arguments: Sequence[str]) -> NoReturn:
    """Run one of the three; the process ends with a status of `docs/runtime-contract.md`."""
    match list(arguments):
        case ["serve"]:
            if os.getpid() == 1:
                init.split_off()
            # Each brings its own imports: process 1 stays small, and the server listens before it knows numpy.
            from mlimg.runtime.server.serve import serve  # noqa: PLC0415

            serve(os.environ)
        case ["exec", "--", *command] if command:
            init.hold_signals()
            from mlimg.runtime.execute import execute  # noqa: PLC0415

            execute(command, os.environ)
        case ["fetch", uri, folder]:
            init.hold_signals()
            from mlimg.runtime.execute import fetch  # noqa: PLC0415

            fetch(uri, Path(folder), os.environ)
        case ["--help" | "-h"]:
            sys.stdout.write(USAGE)
            sys.exit(0)
        case _:
            sys.stderr.write(USAGE)
            sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
