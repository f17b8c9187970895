"""Leaves out of the installed packages what no server runs: their own tests, and what only compilers read.

KEEP_WHOLE names packages, by their folders and with spaces between them, that stay as they were installed.
"""

import ast
import os
import re
import shutil

# The compiled tests of PyTorch, and the generator of its sources.
PROGRAMS = ("torch/test", "torch/bin/*[Tt]est*", "torch/bin/protoc*")
SUITE = ("test_*.py", "*_test.py")
CYTHON = ("*.pyx", "*.pxd", "*.pxi")
HEADERS, CODE = ("*.h", "*.hpp"), ("*.py", "*.so")
COMPILERS = ("cc", "c++", "gcc", "g++", "clang")
# They compile while a server runs, by NVRTC or by what they find.
COMPILING = ("cupy", "nvidia", "triton")
# Files without it need not be parsed: imports of tests, and the names of their modules.
MENTION = re.compile(rb"(?:from|import)[\s\w.,()\\]*\btests\b|[\"'][\w.]+\.tests[\w.]*[\"']")
NAME = re.compile(r"[\w.]+\.tests(?:\.\w+)*")


def trim(packages):
    """Trim what lies in the folder `packages`, a site-packages."""
    unused = [path for pattern in PROGRAMS for path in packages.glob(pattern)]
    unused += _suites(packages)
    if not any(map(shutil.which, COMPILERS)):
        sources = [path for pattern in CYTHON for path in packages.rglob(pattern)]
        sources += [path for path in packages.glob("*/**/include") if _holds(path, HEADERS) and not _holds(path, CODE)]
        unused += [path for path in sources if path.relative_to(packages).parts[0] not in COMPILING]
    whole = os.environ.get("KEEP_WHOLE", "").split()
    for path in unused:
        if path.relative_to(packages).parts[0] in whole:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # it went with a folder


def _suites(packages):
    """The folders of tests, the outermost ones, that nothing outside of tests imports from."""
    folders = {path for path in packages.glob("*/**/tests") if path.is_dir() and _holds(path, SUITE)}
    outermost = {path for path in folders if folders.isdisjoint(path.parents)}
    sources = [path for path in packages.rglob("*.py") if outermost.isdisjoint(path.parents)]
    while sources:
        names = {name for path in sources for name in _mentioned(path, packages)}
        needed = {path for path in outermost if ".".join(path.relative_to(packages).parts) in names}
        outermost -= needed
        sources = [source for path in needed for source in path.rglob("*.py")]
    return outermost


def _mentioned(path, packages):
    """The dotted names of `tests` folders that a module imports from, or names in a text of its own."""
    code = path.read_bytes()
    if not MENTION.search(code):
        return
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):  # of another version of Python, or a template of a source
        return
    package = path.relative_to(packages).parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) + 1 - node.level] if node.level else ()
            module = [*parents, *([node.module] if node.module else [])]
            names = [".".join([*module, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value):
            names = [node.value]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: at + 1]) for at, part in enumerate(parts) if part == "tests")


def _holds(folder, patterns):
    return any(True for pattern in patterns for _ in folder.rglob(pattern))
