"""Files that templates render for servers that are not ours, byte for byte; `MLIMG_GOLDEN=write` writes them anew."""

import os
from pathlib import Path

import pytest

from mlimg.render import render
from mlimg.template import IMAGE_HOME, builtin_templates
from tests.support.plans import base_image, server_plan

GOLDEN = Path(__file__).parent / "rendered"
OPTIONS: dict[str, tuple[str, dict[str, object]]] = {
    "mlserver": ("mlserver", {}),
    "mlserver-own-runtime": ("mlserver", {"runtime": "own", "implementation": 'a "quoted".Model', "workers": 2}),
    "tfserving": ("tfserving", {"max_batch_size": 32}),
    "triton": ("triton", {}),
    "triton-on-gpus": ("triton", {"device": "cuda", "instances": 2, "max_batch_size": 64}),
    "vllm": ("vllm", {}),
    "vllm-over-gpus": ("vllm", {"gpus": 4, "context_tokens": 8192, "dtype": "bfloat16", "gpu_memory": 0.5}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_rendered_file_is_what_it_was(name: str) -> None:
    template, options = OPTIONS[name]
    plan = server_plan(template, options=options)
    files = {file.path: file.data.decode() for file in render(plan, base_image()).files}
    for rendered in plan.template.rendered:
        golden = GOLDEN / name / rendered
        text = files[IMAGE_HOME / rendered]
        if os.environ.get("MLIMG_GOLDEN") == "write":
            golden.parent.mkdir(parents=True, exist_ok=True)
            golden.write_text(text, encoding="utf-8")
        assert text == golden.read_text(encoding="utf-8")


def test_every_rendered_file_is_compared() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == set(OPTIONS)
    assert {template.name for template in builtin_templates() if template.rendered} == {
        template for template, _ in OPTIONS.values()
    }
