"""CUDA by ctypes: against a small C library that keeps to NVIDIA's signatures, and a real libcudart without a GPU."""

import glob
import os
import sys

import numpy as np
import pytest
from fakes.cudart_library import compile_cudart

from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.runtimes.cudart import CudaError, Cudart, Gpu, find_libraries


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compile_cudart(tmp_path_factory.mktemp("cudart"))


def test_what_the_gpu_says(library, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_SMS", "4")
    assert Cudart(library).gpu() == Gpu("Fake Orin", "8.7", 4, True, True)


@pytest.mark.parametrize("kind", ["mapped", "pinned", "pageable"])
def test_bytes_go_there_and_back(library, kind):
    cuda = Cudart(library)
    stream, mapped = cuda.create_stream(), kind == "mapped"
    source, target = (
        cuda.host_pageable(64) if kind == "pageable" else cuda.host_alloc(64, mapped=mapped) for _ in range(2)
    )
    assert (source.device_address is not None) == mapped
    source.array[:] = np.arange(64, dtype=np.uint8)
    target.array[:] = 0
    device = cuda.malloc(64)
    assert device % 256 == 0
    cuda.copy_to_device(device, source, 64, stream)
    cuda.copy_to_host(target, device, 32, stream)
    cuda.synchronize(stream)
    assert target.array.tolist() == list(range(32)) + [0] * 32
    if mapped:
        assert source.device_address == source.address


def test_addresses_above_4_gib_survive(library):
    """ctypes passes plain integers as 32-bit ints: a pointer cut in half crashes only on large machines."""
    cuda = Cudart(library)
    buffers = [cuda.host_alloc(1 << 20, False) for _ in range(4)]
    assert max(buffer.address for buffer in buffers) > 1 << 32
    stream, device = cuda.create_stream(), cuda.malloc(1 << 20)
    for i, buffer in enumerate(buffers):
        buffer.array[:] = i
        cuda.copy_to_device(device, buffer, 1 << 20, stream)
    cuda.copy_to_host(buffers[0], device, 1 << 20, stream)
    assert set(buffers[0].array.tolist()) == {3}


def test_no_memory_left(library):
    cuda = Cudart(library)
    for allocate in (cuda.malloc, lambda n: cuda.host_alloc(n, True)):
        with pytest.raises(
            UserError, match=r"2048 MiB for TensorRT's buffers are not available .*out of memory.*smaller"
        ):
            allocate(2 << 30)


def test_every_return_code_is_looked_at(library, monkeypatch):
    cuda = Cudart(library)
    stream, device, host = cuda.create_stream(), cuda.malloc(16), cuda.host_alloc(16, False)
    calls = {
        "cudaStreamSynchronize": lambda: cuda.synchronize(stream),
        "cudaMemcpyAsync": lambda: cuda.copy_to_device(device, host, 16, stream),
        "cudaStreamCreateWithFlags": cuda.create_stream,
        "cudaDeviceGetAttribute": cuda.gpu,
        "cudaGetDeviceProperties": cuda.gpu,
        "cudaMalloc": lambda: cuda.malloc(16),
        "cudaHostAlloc": lambda: cuda.host_alloc(16, False),
        "cudaHostGetDevicePointer": lambda: cuda.host_alloc(16, True),
        "cudaSetDevice": lambda: Cudart(library),
        "cudaGetDeviceCount": lambda: Cudart(library),
    }
    for name, call in sorted(calls.items()):
        monkeypatch.setenv("FAKE_CUDA_FAIL", name + ":700")
        with pytest.raises(CudaError, match=name + ": CUDA error 700: an illegal memory access") as caught:
            call()
        assert caught.value.code == 700
        assert isinstance(caught.value, UserError)  # a message and exit code 2, not a traceback


def test_no_gpu(library, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_GPUS", "0")
    with pytest.raises(UserError, match=r"no CUDA GPU 0 here \(0 found\).*--runtime nvidia"):
        Cudart(library)
    monkeypatch.setenv("FAKE_CUDA_FAIL", "cudaGetDeviceCount:100")
    with pytest.raises(UserError, match=r"no CUDA GPU 0 here \(no CUDA-capable device is detected\)"):
        Cudart(library)


def test_no_library(tmp_path):
    with pytest.raises(UserError, match=r"the CUDA runtime library cannot be loaded .*cuda-cudart"):
        Cudart(str(tmp_path / "libcudart.so"))


def test_where_jetpack_puts_the_library(tmp_path):
    folder = tmp_path / "usr" / "local" / "cuda-10.2" / "lib64"
    folder.mkdir(parents=True)
    (folder / "libcudart.so.10.2").touch()
    found = find_libraries(str(tmp_path))
    assert found[0] == "libcudart.so"
    assert found[-1] == str(folder / "libcudart.so.10.2")


def test_a_real_library_without_a_gpu():
    """PyTorch's CUDA build brings NVIDIA's own libcudart: the calls before the first GPU are the real ones."""
    paths = [path for folder in sys.path for path in glob.glob(os.path.join(folder, "nvidia/*/lib/libcudart.so.*"))]
    if not paths:
        pytest.skip("no real libcudart here")
    if has_gpu():
        assert Cudart(paths[0]).gpu().name
    else:
        with pytest.raises(UserError, match=r"no CUDA GPU 0 here \(.*(driver|device|0 found)"):
            Cudart(paths[0])


def has_gpu():
    return bool(glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/nvhost-gpu"))
