"""The folder of `mlimg render`: whose it is, and what builds it. Engines judge what it holds."""

from dataclasses import replace
from pathlib import Path

import pytest

from mlimg.export import _command, _is_ours, _replaced
from mlimg.plan import Platform
from mlimg.runtime.reference import ImageReference
from tests.support.plans import server_plan

README = "Written by `mlimg render`; build it here with `docker build .`\n"


def folder_of(root: Path, readme: str, *names: str) -> Path:
    root.mkdir()
    (root / "README.md").write_bytes(readme.encode("latin-1"))
    for name in names:
        (root / name).write_text("")
    return root


def test_what_an_earlier_render_wrote_may_be_replaced(tmp_path: Path) -> None:
    assert _is_ours(folder_of(tmp_path / "a", README, "Dockerfile", "build", "image", "models"))
    (tmp_path / "empty").mkdir()
    assert _is_ours(tmp_path / "empty")


@pytest.mark.parametrize("readme", ["Written by hand", "Written by Ada: é", ""])
def test_a_readme_of_somebody_else_protects_its_folder(tmp_path: Path, readme: str) -> None:
    assert not _is_ours(folder_of(tmp_path / "a", readme, "Dockerfile"))


def test_a_file_that_somebody_put_into_a_rendered_folder_protects_it(tmp_path: Path) -> None:
    assert not _is_ours(folder_of(tmp_path / "a", README, "Dockerfile", "notes.txt"))


def test_the_folder_may_be_the_current_one(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with _replaced(tmp_path / "here") as scratch:
        (scratch / "Dockerfile").write_text("FROM a")
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "Dockerfile"]


def test_the_command_has_all_that_a_build_elsewhere_needs() -> None:
    plan = replace(server_plan("python", options={}), platform=Platform("linux", "arm64"), secrets=("netrc",))
    words = _command(plan, ImageReference.parse("a.b/c:1"))
    assert words == (
        "docker build --platform linux/arm64 --build-arg SOURCE_DATE_EPOCH=0 --secret id=netrc,src=NETRC -t a.b/c:1 ."
    )
