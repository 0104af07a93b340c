"""The few functions of the CUDA runtime that inference needs, by ctypes: no pycuda, no cuda-python on the board.

Signatures and numbers: NVIDIA CUDA Runtime API, cuda_runtime_api.h and driver_types.h, unchanged from CUDA 10.2
(JetPack 4) to 13 (JetPack 7). Not run on hardware; tested against a small C library and, without a GPU, a real libcudart.
"""

import ctypes
import glob
import os
from typing import Any, List, NamedTuple, Optional, Sequence

import numpy as np

from ..errors import UserError

_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2  # enum cudaMemcpyKind
_HOST_ALLOC_DEFAULT, _HOST_ALLOC_MAPPED = 0, 2  # cudaHostAllocDefault, cudaHostAllocMapped
_STREAM_NON_BLOCKING = 1  # cudaStreamNonBlocking
_MULTIPROCESSORS, _INTEGRATED, _CAN_MAP = 16, 18, 19  # enum cudaDeviceAttr
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_NO_GPU = (35, 100)  # cudaErrorInsufficientDriver, cudaErrorNoDevice
_GPU = ctypes.c_int(0)  # the first of those that CUDA_VISIBLE_DEVICES leaves
_NAME_BYTES = 256  # cudaDeviceProp starts with char name[256] in every release; the rest of it differs
_PROPERTIES_BYTES = 1 << 14  # more than any release's cudaDeviceProp (10.2: 720, 13: 1 008 bytes)

# Where the library is: on the loader's path, then where JetPack and NVIDIA's packages put it.
_NAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so.10.2")
_PLACES = ("usr/local/cuda/lib64", "usr/local/cuda-*/lib64", "usr/local/cuda*/targets/*/lib", "usr/lib/*-linux-gnu")


class Gpu(NamedTuple):
    """The GPU that engines are built for."""

    name: str
    compute_capability: str  # such as "8.7"
    n_sms: int  # streaming multiprocessors running now: low power modes of a Jetson switch some off
    is_integrated: bool  # shares its memory with the processor, as on every Jetson
    can_map: bool  # reads and writes host memory that was allocated for it


class CudaError(UserError):
    """A CUDA call failed. code: cudaError_t."""

    def __init__(self, call: str, code: int, text: str) -> None:
        super(CudaError, self).__init__(
            "{}: CUDA error {}: {}. Run it again; if it comes back after a reboot, report it".format(call, code, text)
        )
        self.code = code


class HostBuffer(object):
    """Host memory that is copied from and to.

    array: uint8 (n_bytes,), the memory itself. device_address: where the GPU sees the same bytes, None: it does not.
    """

    def __init__(self, array: np.ndarray, device_address: Optional[int] = None) -> None:
        self.array = array
        self.address = int(array.ctypes.data)
        self.device_address = device_address


class Cudart(object):
    """The CUDA runtime library, with every return code checked.

    Raises UserError where there is no library, no GPU, or no memory left; CudaError for what else goes wrong.
    """

    def __init__(self, path: Optional[str] = None) -> None:
        self._library = _load(path)
        self._library.cudaGetErrorString.restype = ctypes.c_char_p
        count = ctypes.c_int()
        code = self._library.cudaGetDeviceCount(ctypes.byref(count))
        if code in _NO_GPU or (code == 0 and count.value < 1):
            raise UserError(
                "no CUDA GPU 0 here ({}): TensorRT needs one. In a container: run it with --runtime nvidia; else use "
                "the onnxruntime runtime".format(self._text(code) if code else "0 found")
            )
        self._check("cudaGetDeviceCount", code)
        self._call("cudaSetDevice", _GPU)

    def gpu(self) -> Gpu:
        """What the GPU says of itself."""
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        # CUDA 12 names the function of its longer structure _v2; 11 and 13 have one name only.
        name = "cudaGetDeviceProperties_v2"
        if not hasattr(self._library, name):
            name = "cudaGetDeviceProperties"
        self._call(name, properties, _GPU)
        return Gpu(
            name=properties.raw[:_NAME_BYTES].split(b"\0")[0].decode("utf-8", errors="replace"),
            compute_capability="{}.{}".format(self._attribute(_CAPABILITY_MAJOR), self._attribute(_CAPABILITY_MINOR)),
            n_sms=self._attribute(_MULTIPROCESSORS),
            is_integrated=bool(self._attribute(_INTEGRATED)),
            can_map=bool(self._attribute(_CAN_MAP)),
        )

    def create_stream(self) -> int:
        """A stream that does not wait for the default stream; returns its handle."""
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), ctypes.c_uint(_STREAM_NON_BLOCKING))
        return int(stream.value or 0)

    def synchronize(self, stream: int) -> None:
        """Wait until all work given to the stream is done; errors of that work are raised here."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def malloc(self, n_bytes: int) -> int:
        """Device memory; returns its address, which is aligned to 256 bytes. Raises UserError when there is none left."""
        pointer = ctypes.c_void_p()
        self._allocate("cudaMalloc", n_bytes, ctypes.byref(pointer), ctypes.c_size_t(n_bytes))
        return int(pointer.value or 0)

    def host_alloc(self, n_bytes: int, mapped: bool) -> HostBuffer:
        """Page-locked host memory; `mapped`: the GPU uses it where it lies (zero-copy). Raises UserError when full."""
        pointer, device = ctypes.c_void_p(), ctypes.c_void_p()
        flags = _HOST_ALLOC_MAPPED if mapped else _HOST_ALLOC_DEFAULT
        self._allocate("cudaHostAlloc", n_bytes, ctypes.byref(pointer), ctypes.c_size_t(n_bytes), ctypes.c_uint(flags))
        if mapped:
            self._call("cudaHostGetDevicePointer", ctypes.byref(device), pointer, ctypes.c_uint(0))
        block = (ctypes.c_uint8 * n_bytes).from_address(int(pointer.value or 0))
        return HostBuffer(np.ctypeslib.as_array(block), int(device.value or 0) if mapped else None)

    def host_pageable(self, n_bytes: int) -> HostBuffer:
        """Ordinary host memory; it is Python's and frees itself."""
        return HostBuffer(np.empty(n_bytes, dtype=np.uint8))

    def copy_to_device(self, address: int, buffer: HostBuffer, n_bytes: int, stream: int) -> None:
        """Begin to copy the first n_bytes of the buffer to device memory; the buffer must rest until synchronize."""
        self._copy(address, buffer.address, n_bytes, _HOST_TO_DEVICE, stream)

    def copy_to_host(self, buffer: HostBuffer, address: int, n_bytes: int, stream: int) -> None:
        """Begin to copy n_bytes of device memory to the buffer; they are there after synchronize."""
        self._copy(buffer.address, address, n_bytes, _DEVICE_TO_HOST, stream)

    def _copy(self, to: int, source: int, n_bytes: int, kind: int, stream: int) -> None:
        self._call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(to),
            ctypes.c_void_p(source),
            ctypes.c_size_t(n_bytes),
            ctypes.c_int(kind),
            ctypes.c_void_p(stream),
        )

    def _attribute(self, attribute: int) -> int:
        value = ctypes.c_int()
        self._call("cudaDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), _GPU)
        return value.value

    def _allocate(self, name: str, n_bytes: int, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code == _OUT_OF_MEMORY:
            raise UserError(
                "{:.0f} MiB for TensorRT's buffers are not available ({}: {}): free memory (stop other programs, run "
                "without a desktop), or export with a smaller batch or window".format(
                    n_bytes / 2.0**20, name, self._text(code)
                )
            )
        self._check(name, code)

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(name, getattr(self._library, name)(*arguments))

    def _check(self, name: str, code: int) -> None:
        if code != 0:
            raise CudaError(name, code, self._text(code))

    def _text(self, code: int) -> str:
        text = self._library.cudaGetErrorString(ctypes.c_int(code))
        return text.decode("utf-8", errors="replace") if text else "no text"


def find_libraries(root: str = "/") -> List[str]:
    """Names and paths under which libcudart may be, most likely first."""
    found: List[str] = []
    for place in _PLACES:
        # Reversed: the highest version first.
        found += sorted(glob.glob(os.path.join(root, place, "libcudart.so*")), reverse=True)
    return list(_NAMES) + found


def _load(path: Optional[str]) -> Any:
    candidates: Sequence[str] = [path] if path else find_libraries()
    first_error: Optional[OSError] = None
    for candidate in candidates:
        try:
            return ctypes.CDLL(candidate)
        except OSError as error:
            first_error = first_error or error
    raise UserError(
        "the CUDA runtime library cannot be loaded ({}): TensorRT needs it. JetPack brings it as the package "
        "cuda-cudart; without it use the onnxruntime runtime".format(first_error)
    )
