"""Makes a tree of files that becomes a layer come out the same whenever it is built.

Run as a script it finishes /layers/code: the folders that belong to whoever runs the server, and bytecode.
"""

import compileall
import os
import py_compile
import re
import shutil
import sys
from pathlib import Path

TREE = Path("/layers/code")
# Writable for the server's user, and for any user of group 0: some platforms choose a user at random.
WRITABLE = ("models", "cache")
USER, GROUP = 10001, 0
# More than half of scikit-learn's and pandas' bytecode would be that of their tests, which no server imports.
TESTS = re.compile(r"/tests/")


def main():
    for name in WRITABLE:
        (TREE / name).mkdir()
    if not compile_sources(TREE):
        sys.exit("the server's code does not compile")
    normalise(TREE)
    for name in WRITABLE:
        os.chown(TREE / name, USER, GROUP)
        (TREE / name).chmod(0o2775)


def compile_sources(tree):
    """Compile what Python is under `tree`, without times in the bytecode. Returns whether all of it compiles."""
    for path in sorted(tree.rglob("__pycache__")):
        shutil.rmtree(path)
    return compileall.compile_dir(
        tree,
        quiet=1,
        stripdir=str(tree),
        prependdir="/",
        rx=TESTS,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


def normalise(tree):
    """Set owners to root, modes to 0755 or 0644, times to 1970."""
    for folder, folders, names in os.walk(tree, topdown=False):
        for path in (*(Path(folder, name) for name in names + folders), Path(folder)):
            os.chown(path, 0, 0, follow_symlinks=False)
            if not path.is_symlink():
                executable = path.is_dir() or path.stat().st_mode & 0o100
                path.chmod(0o755 if executable else 0o644)
            os.utime(path, (0, 0), follow_symlinks=False)


if __name__ == "__main__":
    main()
