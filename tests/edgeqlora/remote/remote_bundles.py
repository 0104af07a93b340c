"""What the tests over SSH share: bundles sealed with their hashes, and one way to bench."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import sshd

from edgeqlora.remote import HostResult, bench_hosts
from edgeqlora_jetson.pyz import PYZ_NAME

FIXTURE = Path(__file__).resolve().parents[2] / "jetson" / "fixtures" / "bundle"
BENCH = ["bench", "--repeats", "1", "--warmup", "1", "--power", "none"]
BIG = 24 << 20


def seal(folder: Path) -> Path:
    """Write the hashes of all files of a bundle into its manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {
        str(path.relative_to(folder)): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def with_runner(bundle: Path, folder: Path, code: str) -> Path:
    """A copy of the bundle whose runner is a program of the test's: Python runs a text as well as an archive."""
    shutil.copytree(bundle, folder)
    (folder / PYZ_NAME).write_text(code)
    return seal(folder)


def bench(bundle: Path, server: sshd.Server, output: Path, **settings: Any) -> tuple[HostResult, list[str]]:
    """Bench one host: its result and what was said."""
    said: list[str] = []
    settings = {
        "hosts": [server.host],
        "runner_args": BENCH,
        "python": sys.executable,
        "identity": server.identity,
        "known_hosts": server.known_hosts,
        "config": Path("none"),
        "say": said.append,
    } | settings
    (result,) = bench_hosts(bundle, settings.pop("hosts"), settings.pop("runner_args"), output, **settings)
    return result, said


def far_folder(server: sshd.Server) -> Path:
    return server.home / "edgeqlora-bundles" / "tiny-fixture"


def n_bytes(bundle: Path) -> int:
    return sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_dead(pid: int, seconds: float = 15) -> bool:
    deadline_s = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return not is_alive(pid)
