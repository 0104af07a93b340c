"""Fixtures of the board's tests; Python 3.6 grammar, as they run on every Python a board has."""

import json
import os
import shutil
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
JETSON = os.path.join(os.path.dirname(os.path.dirname(HERE)), "jetson")
# The .pyz and command line tests start new interpreters: they must find the package uninstalled as well.
if JETSON not in sys.path:
    sys.path.insert(0, JETSON)


def pytest_configure(config):
    # run_pythons.sh runs these tests without pyproject.toml, which old Pythons' pytest cannot read.
    config.addinivalue_line("markers", "real: needs ../shared (real model, real speech)")
    config.addinivalue_line("markers", "jetson: needs a Jetson board")


@pytest.fixture
def virtual_time(monkeypatch):
    """Under the runner, time that passes only when somebody works or sleeps."""
    from fakes.clock import VirtualTime

    return VirtualTime().install(monkeypatch)


@pytest.fixture(scope="session")
def fixture_folder():
    """The tiny bundle made by make_bundle.py."""
    return os.path.join(HERE, "fixtures/bundle")


@pytest.fixture(scope="session")
def expected():
    """What the tiny bundle must say: tokens, texts, window_s of its clips, computed apart from onnxruntime."""
    with open(os.path.join(HERE, "fixtures/expected.json")) as file:
        return json.load(file)


@pytest.fixture
def bundle_copy(fixture_folder, tmp_path):
    """A copy of the tiny bundle that a test may damage."""
    folder = str(tmp_path / "bundle")
    shutil.copytree(fixture_folder, folder)
    return folder


@pytest.fixture(scope="session")
def transcriber(fixture_folder):
    """The tiny bundle, opened in onnxruntime."""
    pytest.importorskip("onnxruntime")
    from edgeqlora_jetson.bundle import Bundle
    from edgeqlora_jetson.runtimes import open_runtime
    from edgeqlora_jetson.transcribe import Transcriber

    bundle = Bundle.load(fixture_folder)
    return Transcriber(bundle, open_runtime(bundle, threads=1))


@pytest.fixture(scope="session")
def clips(fixture_folder):
    """The tiny bundle's three clips: list of float32 (n_samples,)."""
    from edgeqlora_jetson.audio.load import load_audio

    return [load_audio(os.path.join(fixture_folder, "eval", name)) for name in ("0000.wav", "0001.wav", "0002.wav")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Engines and records of a test are its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
