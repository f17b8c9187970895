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
COMPILING = ("cuda", "cupy", "numba", "numba_cuda", "nvidia", "triton")
NAME = re.compile(r"(\.*)((?:\w+\.)*tests(?:\.\w+)*)")


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
        needed = {path for path in outermost if not names.isdisjoint(_names(path.relative_to(packages).parts))}
        outermost -= needed
        sources = [source for path in needed for source in path.rglob("*.py")]
    return outermost


def _names(parts):
    """What a module calls a folder of tests: its dotted name, or `package/tests` for any of a package."""
    return ".".join(parts), f"{parts[0]}/tests"


def _mentioned(path, packages):
    """The `_names` of folders that a module imports from, or names in a text or a path of its own."""
    code = path.read_bytes()
    if b"tests" not in code:
        return
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):  # of another version of Python, or a template of a source
        return
    package = path.relative_to(packages).parts[:-1]
    serves = package and b"import pytest" not in code  # what helps tests may join paths to them
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = [*_parents(package, node.level), *([node.module] if node.module else [])]
            names = [".".join([*module, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and (name := NAME.fullmatch(node.value)):
            names = [".".join([*_parents(package, len(name[1])), name[2]])]
        else:
            if serves and any("tests" in part.split("/") for part in _joined(node)):
                yield f"{package[0]}/tests"
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: at + 1]) for at, part in enumerate(parts) if part == "tests")


def _parents(package, level):
    """The package that `level` dots at the start of a name stand for, in a module of `package`."""
    return package[: len(package) + 1 - level] if level else ()


def _joined(node):
    """The texts that `path / "text"` and `path.joinpath("text")` add; os.path.join is how pandas finds its callers."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        values = [node.right]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "joinpath":
        values = node.args
    else:
        return []
    return [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]


def _holds(folder, patterns):
    return any(True for pattern in patterns for _ in folder.rglob(pattern))
