"""One run that all tests of training may look at."""

from pathlib import Path

import pytest
from training_runs import settings_of

from edgeqlora.train import train


@pytest.fixture(scope="module")
def straight(tiny_model, clips, tmp_path_factory) -> Path:
    """Adapter of an uninterrupted run."""
    output = tmp_path_factory.mktemp("straight") / "adapter"
    train(settings_of(tiny_model, clips, output))
    return output
