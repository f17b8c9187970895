"""``python -m mlimg.runtime.server.runners LINK PAGE``: a worker at its ends of a pair of sockets and a page."""

import sys

from mlimg.runtime.server.runners.worker import main

main(*map(int, sys.argv[1:]))
