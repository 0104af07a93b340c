"""Fixtures of the tests over SSH (pytest_plugins): the tiny bundle with the real runner, and a server to bench on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sshd
from remote_bundles import BIG, FIXTURE, seal

from edgeqlora_jetson.pyz import PYZ_NAME, build_pyz


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with the real runner in it."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    shutil.copytree(FIXTURE, folder)
    build_pyz(folder / PYZ_NAME)
    return seal(folder)


@pytest.fixture(scope="module")
def big_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with 24 MiB of weights, so that a copy can be stopped half-way."""
    folder = tmp_path_factory.mktemp("big") / "tiny"
    shutil.copytree(bundle, folder)
    (folder / "weights.bin").write_bytes(os.urandom(BIG))
    return seal(folder)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Server]:
    with sshd.serve(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def server(shared_server: sshd.Server, no_agent: None) -> sshd.Server:
    """A running server whose home folder is empty."""
    shutil.rmtree(shared_server.home)
    shared_server.home.mkdir()
    return shared_server


@pytest.fixture
def no_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the agent nor the keys and hosts of whoever runs the tests."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
