"""Tests of a GPU and of TensorRT are skipped, saying why, where these are missing."""

import gpu_machine
import pytest


@pytest.fixture(autouse=True)
def needed_hardware(request: pytest.FixtureRequest) -> None:
    for marker, missing in (("gpu", gpu_machine.no_gpu), ("tensorrt", gpu_machine.no_tensorrt)):
        if request.node.get_closest_marker(marker) and (reason := missing()):
            pytest.skip(reason)
