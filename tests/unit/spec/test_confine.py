"""Paths of a spec stay in the project, or in a folder that was allowed."""

import subprocess
import sys
from pathlib import Path

import pytest

from mlimg.spec.problems import Code, InvalidSpecError

from .conftest import Load, attempt, with_value

PATH_KEYS = ["server.template", "server.requirements", "server.code", "model.source", "model.store"]


@pytest.fixture
def outside(folder: Path) -> Path:
    """A folder beside the project, with a file that nobody may read."""
    secret = folder.parent / "outside"
    secret.mkdir()
    (secret / "canary.txt").write_text("canary")
    return secret


def refusal(load: Load, key: str, text: str) -> InvalidSpecError:
    with pytest.raises(InvalidSpecError) as caught:
        load(with_value(key, text))
    assert caught.value.status == 10
    return caught.value


@pytest.mark.parametrize("key", PATH_KEYS)
def test_a_path_out_of_the_project_is_refused_with_the_flag_that_allows_it(
    load: Load, folder: Path, outside: Path, key: str
) -> None:
    """A12."""
    (folder / "link.txt").symlink_to(outside / "canary.txt")
    (folder / "up").symlink_to("..")
    canary = outside / "canary.txt"
    for text in [
        "../outside/canary.txt",
        str(canary),
        "./link.txt",
        "./up/outside/canary.txt",
        "./a/../../outside/canary.txt",
    ]:
        error = refusal(load, key, text)
        assert [problem.code for problem in error.problems] == [Code.PATH], error
        assert error.message.startswith("mlimg.yaml:1:")
        assert key in error.message
        assert error.hint == f"to let the spec name it: --allow-path {canary}"


@pytest.mark.parametrize("key", PATH_KEYS)
@pytest.mark.parametrize(
    "text",
    [
        "~/x.txt",
        "./%2e%2e/x.txt",
        "./..%2Fx.txt",
        "file:///etc/x.txt",
        "file:/etc/x.txt",
        "./$HOME/x.txt",
        "./a\\x.txt",
    ],
)
def test_a_path_is_not_expanded_or_decoded(load: Load, key: str, text: str) -> None:
    """A12."""
    refusal(load, key, text)


@pytest.mark.parametrize("key", PATH_KEYS)
def test_a_path_in_the_project_or_an_allowed_folder_is_taken(load: Load, folder: Path, outside: Path, key: str) -> None:
    """A12, the twins."""
    (folder / "inside.txt").write_text("")
    (folder / "link.txt").symlink_to("inside.txt")
    for text in [
        "./inside.txt",
        "./link.txt",
        "./missing/../inside.txt",
        "./not there/yet.txt",
        str(folder / "inside.txt"),
    ]:
        assert load(with_value(key, text))
    for allowed in (outside, outside / "canary.txt"):
        loaded = load(with_value(key, "../outside/canary.txt"), allow=(allowed,))
        assert loaded.file(key, "../outside/canary.txt") == outside / "canary.txt"
        assert loaded.allowed == (allowed,)


def test_a_folder_of_like_name_is_not_the_project(load: Load, folder: Path) -> None:
    """A12: `project2` begins with `project`."""
    Path(f"{folder}2").mkdir()
    assert refusal(load, "model.source", "../project2").problems[0].code is Code.PATH


def test_a_loop_of_links_leads_nowhere(load: Load, folder: Path) -> None:
    """A12."""
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    outcome = attempt(load, with_value("model.source", "./a"))
    if isinstance(outcome, InvalidSpecError):  # before Python 3.13
        assert outcome.problems[0].code is Code.PATH
    else:
        assert outcome.file("model.source", "./a").is_relative_to(folder)


def test_the_project_is_the_nearest_folder_with_git(load: Load, folder: Path, outside: Path) -> None:
    assert refusal(load, "model.source", "../outside").problems[0].code is Code.PATH
    (folder.parent / ".git").write_text("gitdir: elsewhere")  # a file in a work tree
    loaded = load(with_value("model.source", "../outside"))
    assert loaded.project == folder.parent
    assert loaded.file("model.source", "../outside") == outside
    (folder / ".git").mkdir()
    assert refusal(load, "model.source", "../outside").problems[0].code is Code.PATH


def test_paths_start_from_the_spec_wherever_they_are_written(load: Load, folder: Path) -> None:
    loaded = load(with_value("model.version", "3"), "model.source=sub/model")
    assert loaded.file("model.source", loaded.spec.model.source) == folder / "sub" / "model"


def test_a_path_that_is_resolved_later_is_held_to_the_same_rule(load: Load, outside: Path) -> None:
    loaded = load(with_value("server.code", "./serve"))
    with pytest.raises(
        InvalidSpecError, match=r"^mlimg.yaml:1:\d+: server.code: `../outside` leads out of the project"
    ):
        loaded.file("server.code", "../outside")
    with pytest.raises(InvalidSpecError, match="leads nowhere"):
        loaded.file("server.code", "a\0b")


def test_paths_are_judged_even_when_other_keys_are_wrong(load: Load) -> None:
    spec = with_value("model.source", "../elsewhere")
    spec["model"]["version"] = "1.0+cu121"
    with pytest.raises(InvalidSpecError) as caught:
        load(spec)
    assert {problem.key for problem in caught.value.problems} == {"model.source", "model.version"}


def test_nothing_outside_is_opened(load: Load, folder: Path, outside: Path) -> None:
    """A12, judged by the kernel's record: no file below `outside` is opened, whatever the paths say."""
    (folder / "link").symlink_to(outside)
    (folder / "inside.txt").write_text("")
    for key in PATH_KEYS:
        refusal(load, key, "./link/canary.txt")
    trace = folder.parent / "trace"
    code = "import sys; from pathlib import Path; from mlimg.spec.load import load_spec; load_spec(Path('mlimg.yaml'))"
    subprocess.run(
        ["strace", "-f", "-o", trace, "-e", "trace=open,openat,openat2", sys.executable, "-c", code],
        capture_output=True,
        check=False,
        cwd=folder,
    )
    opened = trace.read_text()
    assert '"mlimg.yaml"' in opened, "the trace shows what is opened"
    assert str(outside) not in opened
    assert "canary" not in opened
    assert "link" not in "".join(line for line in opened.splitlines() if "O_RDONLY" in line and str(folder) in line)
