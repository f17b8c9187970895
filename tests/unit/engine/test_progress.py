from mlimg.engine.progress import LOG_LINES, BuildProgress

# As buildx 0.13.1 prints it.
FAILED = """\
#0 building with "default" instance using docker driver
#1 [internal] load remote build context
#1 DONE 0.0s
#2 [internal] load metadata for mlimg.local/python:3.13-slim
#2 DONE 0.0s
#3 [build 1/3] FROM mlimg.local/python:3.13-slim
#3 CACHED
#4 [build 2/3] RUN echo hello
#4 0.120 hello
#4 DONE 0.2s
#5 [other 2/2] RUN sleep 9
#6 [build 3/3] RUN echo bad; exit 3
#6 0.166 first
#5 [other 2/2] RUN sleep 9
#5 CANCELED
#6 [build 3/3] RUN echo bad; exit 3
#6 0.170 bad
#6 ERROR: process "/bin/sh -c echo bad; exit 3" did not complete successfully: exit code: 3
------
 > [build 3/3] RUN echo bad; exit 3:
ERROR: failed to solve: process "/bin/sh -c echo bad; exit 3" did not complete successfully: exit code: 3
"""


def read(text: str) -> tuple[BuildProgress, list[str]]:
    progress = BuildProgress()
    began = [progress.step.title for line in text.splitlines() if progress.read(line) and progress.step]
    return progress, began


def test_the_failed_step_is_found_with_what_it_printed() -> None:
    progress, _ = read(FAILED)
    assert progress.failed is not None
    assert progress.failed.title == "[build 3/3] RUN echo bad; exit 3"
    assert list(progress.failed.log) == ["first", "bad"]
    assert progress.failed.error.endswith("exit code: 3")
    assert progress.summary.endswith("exit code: 3")


def test_each_step_is_told_when_it_begins() -> None:
    assert read(FAILED)[1][-4:] == [
        "[other 2/2] RUN sleep 9",
        "[build 3/3] RUN echo bad; exit 3",
        "[other 2/2] RUN sleep 9",
        "[build 3/3] RUN echo bad; exit 3",
    ]


def test_a_step_cancelled_beside_the_failed_one_is_not_the_failed_one() -> None:
    cancelled = (
        "#1 [a] RUN x\n#2 [b] RUN y\n#1 ERROR: process did not complete: context canceled\n#2 ERROR: exit code: 1"
    )
    progress, _ = read(cancelled)
    assert progress.failed is not None
    assert progress.failed.title == "[b] RUN y"


def test_only_the_last_lines_of_a_step_are_kept() -> None:
    progress, _ = read("#1 [a] RUN x\n" + "\n".join(f"#1 0.1 line {n}" for n in range(1000)) + "\n#1 ERROR: no")
    assert progress.failed is not None
    assert list(progress.failed.log) == [f"line {n}" for n in range(1000 - LOG_LINES, 1000)]


def test_an_error_before_any_step_is_the_summary() -> None:
    progress, _ = read('ERROR: no builder "other" found')
    assert progress.failed is None
    assert progress.summary == 'no builder "other" found'
