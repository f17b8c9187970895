"""``python -m mlimg.runtime.server.runners FD``: a worker at its end of a pair of sockets."""

import sys

from mlimg.runtime.server.runners.worker import main

main(int(sys.argv[1]))
