"""The option `device`."""

import pytest

from mlimg.runtime.errors import ModelError
from mlimg.runtime.server.devices import check_device


def test_a_server_for_cuda_needs_it() -> None:
    check_device("cuda", lambda: ["a GPU"])
    with pytest.raises(ModelError, match="no CUDA device is here"):
        check_device("cuda", list)


def test_a_server_for_the_processor_does_not_look() -> None:
    check_device("cpu", lambda: pytest.fail("asked for a GPU"))
