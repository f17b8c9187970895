"""The three rules of the layout, held by walking every import. `docs/architecture.md` gives the reasons."""

import ast
from collections.abc import Iterator
from pathlib import Path

import mlimg

ROOT = Path(mlimg.__file__).parent
WORDS = {f"mlimg.runtime.{word}" for word in ("errors", "digest", "reference", "descriptor", "manifest")}


def modules(folder: str = "") -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), path


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "mlimg"}
    return found


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "mlimg" and name != "mlimg"}


def top(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_runtime_stands_on_nothing_of_ours_outside_itself() -> None:
    outside = {
        (name, found)
        for name, path in modules("runtime")
        for found in ours(imports(path))
        if not found.startswith("mlimg.runtime")
    }
    assert not outside


def test_runtime_imports_frameworks_only_where_the_server_is() -> None:
    heavy = {"numpy", "starlette", "uvicorn", "obstore"}
    allowed = ("mlimg.runtime.server", "mlimg.runtime.stores.objects")
    found = {(name, lib) for name, path in modules("runtime") for lib in top(imports(path)) & heavy}
    assert found, "the server imports starlette: a walk that finds nothing is broken"
    assert not {(name, lib) for name, lib in found if not name.startswith(allowed)}


def test_plan_render_and_append_compute_from_values_alone() -> None:
    words = WORDS | {"mlimg.files", "mlimg.dockerfile", "mlimg.confined"}
    allowed = {"mlimg.plan", "mlimg.template", "mlimg.spec", "mlimg.spec.schema", "mlimg.spec.requirement"} | words
    for module in ("plan", "render", "append"):
        found = ours(imports(ROOT / f"{module}.py"))
        assert found <= allowed, f"{module} imports {found - allowed}"


def test_only_cli_talks_to_a_terminal_and_nothing_imports_cli() -> None:
    for name, path in modules():
        if name.startswith("mlimg.cli.") or name == "mlimg.cli":
            continue
        found = imports(path)
        assert not top(found) & {"typer", "rich"}, name
        assert not any(f"{module}.".startswith("mlimg.cli.") for module in found), name


def test_the_package_is_empty_so_that_runtime_can_be_copied_as_it_is() -> None:
    assert (ROOT / "__init__.py").read_text(encoding="utf-8") == ""
