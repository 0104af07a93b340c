"""Tests of a GPU and of TensorRT are skipped, saying why, where these are missing."""

import gpu_machine
import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture: those of a module train a model."""
    for marker, missing in (("gpu", gpu_machine.no_gpu), ("tensorrt", gpu_machine.no_tensorrt)):
        if item.get_closest_marker(marker) and (reason := missing()):
            pytest.skip(reason)
