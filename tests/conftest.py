"""Shared fixtures: where the real model and the real speech are, if they are here."""

import signal
from pathlib import Path

import pytest

try:
    import hypothesis
except ImportError:  # the board's tests run without it on old Pythons
    hypothesis = None

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure() -> None:
    """Programs started in the background ignore SIGINT and hand that on: the tests of Ctrl-C would test nothing."""
    # No test is timed: these machines are shared.
    if hypothesis is not None:
        too_slow = hypothesis.HealthCheck.too_slow
        hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[too_slow])
        hypothesis.settings.load_profile("untimed")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: "list") -> None:
    """Files with slow tests first: with several workers the last one would run alone for minutes otherwise."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("real")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real models and real speech; skips, saying so, where it is absent."""
    if not (SHARED / "models" / "whisper-tiny.en").is_dir():
        pytest.skip(f"needs real data: {SHARED} is not here")
    return SHARED
