from pathlib import Path, PurePosixPath

from mlimg.engine.containers import RunOptions


def test_the_equal_docker_run_can_be_pasted() -> None:
    options = RunOptions(
        "image:1",
        command=["serve"],
        ports={8080: 8081},
        env={"A": "b c"},
        mounts={PurePosixPath("/mnt/models"): Path("/srv/my models")},
        gpus="all",
        user="1234:0",
        read_only=True,
        name="digits",
        remove=True,
    )
    assert options.command_line(detach=True) == (
        "docker run --detach --rm --name digits --user 1234:0 --read-only --gpus all --publish 127.0.0.1:8081:8080 "
        "--env 'A=b c' --mount 'type=bind,source=/srv/my models,target=/mnt/models,readonly' image:1 serve"
    )


def test_a_folder_may_have_a_comma_in_its_name() -> None:
    options = RunOptions("image:1", mounts={PurePosixPath("/mnt/models"): Path('/srv/a,b"c')})
    assert """--mount 'type=bind,"source=/srv/a,b""c",target=/mnt/models,readonly'""" in options.command_line()


def test_the_environment_is_not_in_the_representation() -> None:
    assert "s3cret" not in repr(RunOptions("image:1", env={"TOKEN": "s3cret"}))
