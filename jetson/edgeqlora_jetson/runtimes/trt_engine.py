"""Engines of a bundle in memory: contexts, and the buffers that they read and write."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..engines.request import OptimizationProfile
from ..errors import UserError
from .cudart import Gpu
from .trt_adapters import load_engine, open_context

_CACHED_PINNED = (7, 2)
"""Compute capability from which on a Jetson's processor caches page-locked memory."""


class TrtEngine(object):
    """A deserialised engine, its optimization profiles and its execution contexts.

    Contexts of one engine that are in use at the same time need different optimization profiles, so each context is
    opened for some of them: the decoder has one for "prefill" and one for "step", the encoder one for all its windows.
    """

    def __init__(
        self, trt: Any, plan: bytes, path: str, profiles: Sequence[OptimizationProfile], logger: Any, stream: int
    ) -> None:
        self.path = path
        self._trt, self._logger, self._stream = trt, logger, stream
        self._profiles = list(profiles)
        self._engine = load_engine(trt, plan, logger, path)
        found = self._engine.num_optimization_profiles
        if found != len(self._profiles):
            raise UserError(
                "{}: this engine has {} optimization profiles, the bundle asks for {}: build it again (build --force)".format(
                    path, found, len(self._profiles)
                )
            )

    def open(self, names: Optional[Sequence[str]] = None) -> "TrtContext":
        """A context for the optimization profiles of these names, None: for all."""
        numbers = [i for i, profile in enumerate(self._profiles) if names is None or profile.name in names]
        context = open_context(self._trt, self._engine, self._logger)
        return TrtContext(context, {i: self._profiles[i] for i in numbers}, self.path, self._stream)

    def refusal(self, shapes: Dict[str, Tuple[int, ...]]) -> UserError:
        """The error for shapes that no optimization profile of the engine takes."""
        return UserError(_outside(self.path, shapes, self._profiles))


class TrtContext(object):
    """A context that knows which optimization profile takes which shapes."""

    def __init__(self, context: Any, profiles: Dict[int, OptimizationProfile], path: str, stream: int) -> None:
        self._context, self._profiles, self._path, self._stream = context, profiles, path, stream
        self._selected: Optional[int] = None
        self._shapes: Dict[str, Tuple[int, ...]] = {}
        self._addresses: Dict[str, int] = {}
        self.api = context.api
        self.tensors = context.tensors

    def check_names(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Raises UserError when the engine's inputs and outputs are not these."""
        found = sorted((tensor.name, tensor.is_input) for tensor in self.tensors.values())
        wanted = sorted([(name, True) for name in inputs] + [(name, False) for name in outputs])
        if found != wanted:
            wrong = sorted({name for name, _ in set(found) ^ set(wanted)})
            raise UserError(
                "{}: this engine differs in {}: build it again (build --force)".format(self._path, ", ".join(wrong))
            )

    def takes(self, shapes: Dict[str, Tuple[int, ...]]) -> bool:
        """Whether one of its optimization profiles takes these shapes."""
        return any(profile.fits(shapes) for profile in self._profiles.values())

    def set_shapes(self, shapes: Dict[str, Tuple[int, ...]]) -> None:
        """Set the shapes of all inputs, changing the optimization profile where these need another one.

        Only what changed since the last call is given to TensorRT: a decoding step changes the past's length alone.
        One of this context's optimization profiles must take them (see `takes`).
        """
        changed = {name: shape for name, shape in shapes.items() if self._shapes.get(name) != shape}
        if self._selected is None or not self._profiles[self._selected].fits(changed):
            number = next(i for i, profile in sorted(self._profiles.items()) if profile.fits(shapes))
            self._context.select(number, self._stream)
            self._selected = number
            # All shapes must be set again, says the documentation; of addresses it says nothing, so these too.
            self._shapes, self._addresses, changed = {}, {}, shapes
        for name, shape in changed.items():
            self._context.set_shape(name, shape)
            self._shapes[name] = shape

    def set_addresses(self, addresses: Dict[str, int]) -> None:
        """Set where inputs and outputs lie; after set_shapes."""
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                self._context.set_address(name, address)
                self._addresses[name] = address

    def execute(self) -> None:
        """Give the work to the stream."""
        self._context.execute(self._stream)


class DeviceBuffer(object):
    """Device memory of a fixed size, allocated once."""

    def __init__(self, cuda: Any, n_items: int, dtype: np.dtype) -> None:
        self.dtype = np.dtype(dtype)
        self.address = cuda.malloc(max(1, n_items) * self.dtype.itemsize)


def choose_host_memory(gpu: Gpu) -> str:
    """The kind of host memory for inputs and outputs: "mapped" (zero-copy), "pageable" or "pinned" (both copied).

    On a Jetson processor and GPU share the DRAM, so mapped memory saves the copy. But below compute capability 7.2
    (Nano, TX2) the processor does not cache page-locked memory, and reading logits from it costs more than copying
    them (CUDA for Tegra, Memory Management, "Pinned host memory"; not measured on a board).
    """
    if not gpu.is_integrated:
        return "pinned"
    major, minor = gpu.compute_capability.split(".")
    if (int(major), int(minor)) < _CACHED_PINNED:
        return "pageable"
    return "mapped" if gpu.can_map else "pinned"


class IoBuffer(object):
    """Memory that the processor and the GPU both use: input written here, output read here.

    host_memory: of choose_host_memory. "mapped": the GPU uses the host memory itself and nothing is copied; else there
    is device memory beside it, and copies in the stream.
    """

    def __init__(self, cuda: Any, n_items: int, dtype: np.dtype, host_memory: str, stream: int) -> None:
        self.dtype = np.dtype(dtype)
        self._cuda, self._stream = cuda, stream
        n_bytes = max(1, n_items) * self.dtype.itemsize
        is_mapped = host_memory == "mapped"
        self._host = cuda.host_pageable(n_bytes) if host_memory == "pageable" else cuda.host_alloc(n_bytes, is_mapped)
        self._device: Optional[int] = None if is_mapped else cuda.malloc(n_bytes)
        # Where the GPU finds it.
        self.address: int = self._host.device_address if self._device is None else self._device

    def upload(self, values: np.ndarray) -> None:
        """Write values; the stream's next work sees them. The stream must be at rest."""
        n_bytes = values.size * self.dtype.itemsize
        view = self._host.array[:n_bytes].view(self.dtype).reshape(values.shape)
        np.copyto(view, values, casting="same_kind")
        if self._device is not None:
            self._cuda.copy_to_device(self._device, self._host, n_bytes, self._stream)

    def download(self, shape: Tuple[int, ...]) -> np.ndarray:
        """Wait for the stream and return its output as a float32 array of one's own."""
        n_bytes = int(np.prod(shape)) * self.dtype.itemsize
        if self._device is not None:
            self._cuda.copy_to_host(self._host, self._device, n_bytes, self._stream)
        self._cuda.synchronize(self._stream)
        return np.array(self._host.array[:n_bytes].view(self.dtype).reshape(shape), dtype=np.float32)


def _outside(path: str, shapes: Dict[str, Tuple[int, ...]], profiles: List[OptimizationProfile]) -> str:
    """The error for shapes that no optimization profile takes: names an input and what it may be."""
    for name, shape in shapes.items():
        if not any(profile.fits({name: shape}) for profile in profiles):
            allowed = "; ".join(
                "{}: {} to {}".format(profile.name, profile.inputs[name]["min"], profile.inputs[name]["max"])
                for profile in profiles
            )
            return "{}: input {} has shape {}, this engine takes {}. Export with a larger batch, window or limit of tokens".format(
                path, name, tuple(shape), allowed
            )
    return "{}: shapes {} do not fit any one optimization profile ({})".format(
        path, shapes, ", ".join(profile.name for profile in profiles)
    )
