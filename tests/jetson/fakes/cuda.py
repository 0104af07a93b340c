"""A stand-in for Cudart whose copies and executions happen when the stream is synchronised, not before.

It has the same methods as edgeqlora_jetson.runtimes.cudart.Cudart (a test compares them) and refuses, by Misuse, what
would be silent corruption on a GPU: host memory touched while work on it is pending, addresses outside any allocation,
device memory that was never written.
"""

import numpy as np

from edgeqlora_jetson.runtimes.cudart import Gpu


class Misuse(AssertionError):
    """The code under test did something that a GPU punishes with wrong numbers or a crash."""


class FakeHostBuffer(object):
    def __init__(self, cuda, address, n_bytes, device_address):
        self._cuda, self.address, self.device_address = cuda, address, device_address
        self.raw = np.full(n_bytes, 0xFF, dtype=np.uint8)

    @property
    def array(self):
        if self._cuda.is_pending(self):
            raise Misuse(
                "host memory {:#x} is used while work on it is pending: synchronize first".format(self.address)
            )
        return self.raw


class FakeCuda(object):
    """GPU "Fake Orin" with 8 SMs; `integrated` as on a Jetson."""

    def __init__(self, integrated=True, n_sms=8, memory_bytes=1 << 28, compute_capability="8.7"):
        self._gpu = Gpu("Fake Orin", compute_capability, n_sms, integrated, True)
        self._free_bytes = memory_bytes
        self._next = 0x100000
        self._device = {}  # address -> uint8 array
        self._hosts = []
        self._queues = {}  # stream -> list of (function, host buffers it touches)
        self.n_allocations = 0
        self.n_copies = 0
        self.n_pinned = 0  # page-locked buffers

    def gpu(self):
        return self._gpu

    def create_stream(self):
        handle = self._take(1)
        self._queues[handle] = []
        return handle

    def synchronize(self, stream):
        queue = self._queues[stream]
        while queue:
            function, _ = queue[0]
            function()
            queue.pop(0)

    def malloc(self, n_bytes):
        if n_bytes < 1:
            raise Misuse("cudaMalloc of {} bytes gives no address".format(n_bytes))
        if n_bytes > self._free_bytes:
            from edgeqlora_jetson.errors import UserError

            raise UserError("out of memory")
        self._free_bytes -= n_bytes
        address = self._take(n_bytes)
        self._device[address] = np.full(n_bytes, 0xFF, dtype=np.uint8)  # NaN in fp32 and fp16, -1 in int32
        self.n_allocations += 1
        return address

    def host_alloc(self, n_bytes, mapped):
        address = self._take(n_bytes)
        buffer = FakeHostBuffer(self, address, n_bytes, self._take(n_bytes) if mapped else None)
        if mapped:
            self._device[buffer.device_address] = buffer.raw
        self._hosts.append(buffer)
        self.n_allocations += 1
        self.n_pinned += 1
        return buffer

    def host_pageable(self, n_bytes):
        buffer = FakeHostBuffer(self, self._take(n_bytes), n_bytes, None)
        self._hosts.append(buffer)
        self.n_allocations += 1
        return buffer

    def copy_to_device(self, address, buffer, n_bytes, stream):
        def copy():
            self.resolve(address, n_bytes)[:] = buffer.raw[:n_bytes]

        self.n_copies += 1
        self._queues[stream].append((copy, [buffer]))

    def copy_to_host(self, buffer, address, n_bytes, stream):
        def copy():
            buffer.raw[:n_bytes] = self.resolve(address, n_bytes)

        self.n_copies += 1
        self._queues[stream].append((copy, [buffer]))

    # What the stand-in of TensorRT uses.

    def enqueue(self, stream, function, addresses):
        """Work of a kernel that reads and writes these addresses."""
        if stream not in self._queues:
            raise Misuse("{:#x} is no stream".format(stream))
        touched = [buffer for buffer in self._hosts if buffer.device_address in addresses]
        self._queues[stream].append((function, touched))

    def resolve(self, address, n_bytes):
        """View of device memory, uint8 (n_bytes,)."""
        for start, memory in self._device.items():
            if start <= address and address + n_bytes <= start + len(memory):
                return memory[address - start : address - start + n_bytes]
        raise Misuse("{} bytes at {:#x} are outside any allocation".format(n_bytes, address))

    def is_pending(self, buffer):
        return any(buffer in touched for queue in self._queues.values() for _, touched in queue)

    def _take(self, n_bytes):
        address = self._next
        self._next += (n_bytes + 511) // 256 * 256  # a gap between any two: running over the end is seen
        return address


class HostMemory(object):
    """For the stand-in of TensorRT over a C library whose device memory is host memory: work is done at once."""

    def enqueue(self, stream, function, addresses):
        function()

    def resolve(self, address, n_bytes):
        import ctypes

        return np.frombuffer((ctypes.c_uint8 * n_bytes).from_address(address), dtype=np.uint8)
