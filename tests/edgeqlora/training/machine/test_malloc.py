"""The heap setting reaches the C library: freed blocks go back to the system."""

import subprocess
import sys
from pathlib import Path

import pytest

from edgeqlora.errors import UserError
from edgeqlora.settings import make_settings
from edgeqlora.train import train
from edgeqlora.training.machine import malloc

CODE = """
import sys
from edgeqlora.training.machine.malloc import return_freed_memory
from edgeqlora.training.machine.resources import rss_mib
if not return_freed_memory():
    sys.exit(3)
import ctypes
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def block():
    p = libc.malloc(2 << 20)
    ctypes.memset(p, 1, 2 << 20)
    return p
first = [block() for _ in range(50)]
libc.free(first.pop(0))  # by default this raises glibc's threshold above 2 MiB
later = [block() for _ in range(50)]
held = rss_mib()
for p in later[:-1]:
    libc.free(p)
print(held - rss_mib())
"""


def test_freed_blocks_go_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip("not glibc")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 90  # 49 blocks of 2 MiB, although one block above them is still in use


@pytest.mark.parametrize(("has_gpu", "n_calls"), [(True, 0), (False, 1)])
def test_the_setting_is_for_training_on_a_processor(monkeypatch, tmp_path: Path, has_gpu: bool, n_calls: int):
    calls: list[bool] = []
    monkeypatch.setattr(malloc, "return_freed_memory", lambda: calls.append(True))
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    with pytest.raises(UserError, match="no model at"):
        train(make_settings({"base_model": "/nothing/here", "train": "t", "output": str(tmp_path / "out")}))
    assert len(calls) == n_calls
