"""Memory of a run: peaks over the baseline, swap, GPU memory; from written /proc trees and from this process."""

import os
import sys
import types

import pytest
from fakes import boards as fake_boards

from edgeqlora_jetson.board.sysfs import read_text
from edgeqlora_jetson.sensors.gpu_memory import GpuMemory, NvmapClient, parse_nvmap
from edgeqlora_jetson.sensors.memory import (
    MemoryMonitor,
    Swap,
    parse_free_lists_mib,
    parse_lfb,
    parse_meminfo,
    parse_swaps,
    read_pss_mib,
)

# As root prints it on an Orin: CLIENT, PROCESS, PID, SIZE; form of NVIDIA's driver, numbers chosen.
NVMAP = """CLIENT                        PROCESS      PID        SIZE
user               gnome-shell     2103      20576K
user                   python3     5281     524288K
user        nvargus daemon     1122         12K
user                   python3     5281       1024K
total                                       545900K
"""
# Recorded on an x86 machine.
BUDDYINFO = """Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      2
Node 0, zone    DMA32      7      6      6      6      5      6      7      6      7      7    734
Node 0, zone   Normal    201   4060   2563    811    314    138     75     39     24     14   2964
"""


def test_meminfo():
    text = "MemTotal:        7803072 kB\nMemFree:          100 kB\nMemAvailable:    1024000 kB\nSwapTotal: 2048 kB\nSwapFree: 1024 kB\n"
    info = parse_meminfo(text)
    assert (info.total_mib, info.available_mib) == (7803072 / 1024.0, 1000.0)
    assert info.swap_used_mib == 1.0
    # Linux before 3.14 has no MemAvailable; MemFree is not it, as caches can be given up.
    assert parse_meminfo("MemTotal: 1 kB\nMemFree: 1 kB\n").available_mib is None
    assert parse_meminfo("").swap_used_mib is None


def test_swaps():
    text = (
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/dev/zram0                              partition\t650248\t\t1024\t\t5\n"
        "/swap file                              file    \t2097152\t0\t-2\n"
    )
    swaps = parse_swaps(text)
    assert swaps[0] == Swap("/dev/zram0", 650248 / 1024.0, 1.0, 5)
    assert [swap.is_zram for swap in swaps] == [True, False]
    assert swaps[1].size_mib == 2048.0
    assert parse_swaps("") == []


def test_largest_free_blocks():
    assert parse_lfb(BUDDYINFO) == (2 + 734 + 2964, 4096)
    # Fragmented: nothing of 4 MiB left, one block of 512 KiB (tegrastats: lfb 1x512kB).
    assert parse_lfb("Node 0, zone   Normal  5 4 3 2 1 0 0 1 0 0 0\n") == (1, 512)
    assert parse_lfb("Node 0, zone   Normal  0 0 0\n") is None
    assert parse_lfb("") is None


def test_nvmap_lines():
    assert parse_nvmap(NVMAP) == [
        NvmapClient("gnome-shell", 2103, 20576 / 1024.0),
        NvmapClient("python3", 5281, 512.0),
        NvmapClient("nvargus daemon", 1122, 12 / 1024.0),
        NvmapClient("python3", 5281, 1.0),
    ]
    assert parse_nvmap("garbage\n\ntotal 5K\n") == []


def test_peak_over_baseline(tmp_path):
    fake_boards.write_memory(tmp_path, 7620, available_mib=5000)
    monitor = MemoryMonitor(str(tmp_path))
    monitor.start()
    for available_mib in (4200, 3100, 4900):
        fake_boards.write_memory(tmp_path, 7620, available_mib)
        monitor.poll()
    result = monitor.finish()
    assert result["baseline_system_used"] == {"value": 2620.0, "unit": "MiB"}
    assert result["peak_system_used"] == {"value": 4520.0, "unit": "MiB"}
    assert result["peak_over_baseline"] == {"value": 1900.0, "unit": "MiB"}
    assert result["least_available"] == {"value": 3100.0, "unit": "MiB"}
    assert result["lfb"] == {"value": os.sysconf("SC_PAGE_SIZE") / 1024.0, "unit": "MiB", "n": 22}
    assert result["problems"] == []
    assert result["method"].startswith("peak of MemTotal - MemAvailable over 4 readings, less that before the run")


def test_a_second_start_keeps_the_baseline(tmp_path):
    fake_boards.write_memory(tmp_path, 7620, available_mib=5000)
    monitor = MemoryMonitor(str(tmp_path))
    monitor.start()
    # The model was loaded in between: its memory is the run's.
    fake_boards.write_memory(tmp_path, 7620, available_mib=4000)
    monitor.start()
    assert monitor.finish()["peak_over_baseline"]["value"] == 1000.0
    # After finish() a new run begins.
    monitor.start()
    result = monitor.finish()
    assert result["peak_over_baseline"]["value"] == 0.0
    assert "over 1 readings" in result["method"]


def test_a_peak_that_is_gone_at_the_end_is_kept_in_swap_too(tmp_path):
    def swaps(used_mib):
        return (("/dev/zram0", 3810, used_mib),)

    fake_boards.write_memory(tmp_path, 7620, 900, swaps(40), swapped_out=1000)
    monitor = MemoryMonitor(str(tmp_path))
    monitor.start()
    fake_boards.write_memory(tmp_path, 7620, 200, swaps(340), swapped_out=90000)
    monitor.poll()
    fake_boards.write_memory(tmp_path, 7620, 800, swaps(35), swapped_out=90000)
    result = monitor.finish()
    assert result["swap_used_before"]["value"] == 40.0
    assert result["swap_used_after"]["value"] == 35.0
    assert result["swap_growth"]["value"] == 300.0
    assert result["swapped_out"]["value"] == 89000 * os.sysconf("SC_PAGE_SIZE") / 2.0**20
    assert len(result["problems"]) == 1
    assert result["problems"][0].startswith("swap: 300 MiB more in use at the peak than before, 348 MiB written out")
    assert "sudo systemctl isolate multi-user.target" in result["problems"][0]


def test_swap_in_use_before_is_no_growth(tmp_path):
    fake_boards.write_memory(tmp_path, 7620, 900, (("/dev/zram0", 3810, 500),), swapped_out=5)
    monitor = MemoryMonitor(str(tmp_path))
    monitor.start()
    # A page or two of another program is not the run's.
    fake_boards.write_memory(tmp_path, 7620, 900, (("/dev/zram0", 3810, 501),), swapped_out=200)
    result = monitor.finish()
    assert result["swap_growth"]["value"] == 1.0
    assert result["problems"] == []


def test_a_system_that_says_nothing_gives_reasons_not_zeros(tmp_path):
    monitor = MemoryMonitor(str(tmp_path))
    monitor.start()
    result = monitor.finish()
    for key in ("baseline_system_used", "peak_over_baseline", "swap_growth", "swapped_out", "pss", "lfb", "nvmap"):
        assert result[key]["value"] is None
        assert result[key]["reason"]
    assert result["peak_over_baseline"]["reason"] == "/proc/meminfo has no MemTotal and MemAvailable"
    assert result["problems"] == []


def test_poll_before_start_is_our_mistake():
    with pytest.raises(RuntimeError, match="before start"):
        MemoryMonitor().poll()


def test_memory_that_this_process_takes_is_seen():
    if parse_meminfo(read_text("/", "proc/meminfo") or "").available_mib is None:
        pytest.skip("no /proc/meminfo")
    rises_mib = []
    # Twice at least: the second time it is given what was just freed, which MemAvailable alone does not see on Linux
    # 6.7 and newer. More often where others on this machine give memory back meanwhile; what others take is seen too.
    while len(rises_mib) < 8 and not any(rise > 300 for rise in rises_mib[1:]):
        monitor = MemoryMonitor()
        monitor.start()
        block = bytearray(400 * 2**20)
        block[::4096] = b"x" * len(block[::4096])
        monitor.poll()
        del block
        result = monitor.finish()
        rises_mib.append(result["peak_over_baseline"]["value"])
    assert any(rise > 300 for rise in rises_mib[1:]), rises_mib
    assert result["peak_rss"]["value"] > 400
    assert result["pss"]["value"] < result["peak_rss"]["value"]


# As Linux 6.18 prints it, shortened to two processors; values chosen.
ZONEINFO = """Node 0, zone   Normal
  per-node stats
      nr_inactive_anon 1234
  pages free     2200
        high     20
  pagesets
    cpu: 0
              count:    25600
              high:     30000
              batch:    63
              high_min: 1000
              high_max: 99999
    cpu: 1
              count:    512
              high:     30000
              batch:    63
              high_min: 1000
              high_max: 99999
"""


def test_free_pages_held_for_each_processor_are_free(tmp_path):
    assert parse_free_lists_mib(ZONEINFO) == 102.0
    # Linux 5.15 keeps a few hundred pages and does not tune their number.
    assert parse_free_lists_mib("    cpu: 0\n              count:    25600\n              high:     30000\n") is None
    page_mib = os.sysconf("SC_PAGE_SIZE") / 2.0**20
    fake_boards.write_memory(tmp_path, 7620, available_mib=5000)
    fake_boards.write(tmp_path, "proc/zoneinfo", ZONEINFO)
    monitor = MemoryMonitor(str(tmp_path))
    monitor.start()
    # The run takes 100 MiB from these lists: MemAvailable stays as it was.
    fake_boards.write(tmp_path, "proc/zoneinfo", ZONEINFO.replace("25600", "0"))
    monitor.poll()
    result = monitor.finish()
    assert result["baseline_system_used"]["value"] == 2620.0 - 26112 * page_mib
    assert result["peak_over_baseline"]["value"] == 25600 * page_mib
    assert "- free pages held for each processor over 2 readings" in result["method"]


def test_pss_of_an_old_kernel(tmp_path):
    # Linux 4.9 of the Nano has no smaps_rollup: the mappings are added up.
    fake_boards.write(tmp_path, "proc/self/smaps", "a\nPss:   100 kB\nb\nPss:   924 kB\nSwapPss: 5 kB\n")
    assert read_pss_mib(str(tmp_path)) == 1.0
    fake_boards.write(tmp_path, "proc/self/smaps_rollup", "Rss: 9 kB\nPss:  2048 kB\nPss_Dirty: 1 kB\n")
    assert read_pss_mib(str(tmp_path)) == 2.0


def test_nvmap_of_this_process_is_summed_and_its_peak_kept(tmp_path):
    path = "sys/kernel/debug/nvmap/iovmm/clients"
    fake_boards.write(tmp_path, path, NVMAP)
    gpu = GpuMemory(str(tmp_path), pid=5281)
    gpu.start()
    fake_boards.write(tmp_path, path, NVMAP.replace("524288K", "1K"))
    gpu.poll()
    assert gpu.finish()["nvmap"] == {"value": 513.0, "unit": "MiB"}


def test_nvmap_of_a_thor_says_nothing_not_zero(tmp_path):
    path = "sys/kernel/debug/nvmap/iovmm/clients"
    fake_boards.write(tmp_path, path, NVMAP.replace("524288K", "0K").replace("1024K", "0K"))
    gpu = GpuMemory(str(tmp_path), pid=5281)
    gpu.start()
    result = gpu.finish()["nvmap"]
    assert result["value"] is None
    assert result["reason"] == "NvMap says 0 here, as on Thor, whose GPU memory it does not count"


def test_nvmap_that_lists_others_only(tmp_path):
    fake_boards.write(tmp_path, "sys/kernel/debug/nvmap/iovmm/clients", NVMAP)
    gpu = GpuMemory(str(tmp_path), pid=1)
    gpu.start()
    assert gpu.finish()["nvmap"]["reason"] == ("/sys/kernel/debug/nvmap/iovmm/clients lists no buffer of this process")


def test_nvmap_without_root(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    gpu = GpuMemory(str(tmp_path))
    gpu.start()
    assert gpu.finish()["nvmap"]["reason"] == "/sys/kernel/debug/nvmap/iovmm/clients needs root"


class FakeNvml(types.ModuleType):
    """NVML as nvidia-ml-py shows it: names may be bytes, memory of a process may be None."""

    class NVMLError(Exception):
        pass

    def __init__(self, names, processes):
        types.ModuleType.__init__(self, "pynvml")
        self.names, self.processes, self.is_open = names, processes, False

    def nvmlInit(self):
        self.is_open = True

    def nvmlShutdown(self):
        self.is_open = False

    def nvmlDeviceGetCount(self):
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, i):
        return i

    def nvmlDeviceGetName(self, handle):
        return self.names[handle]

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        if isinstance(self.processes, Exception):
            raise self.processes
        return [types.SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.processes[handle]]


def nvml_memory(monkeypatch, nvml):
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    gpu = GpuMemory("/", pid=7)
    gpu.start()
    result = gpu.finish()["gpu_memory"]
    assert not nvml.is_open
    return result


def test_gpu_memory_of_a_workstation(monkeypatch):
    nvml = FakeNvml([b"NVIDIA A", "NVIDIA B"], [[(7, 3 * 2**20), (8, 2**30)], [(7, 2**20)]])
    assert nvml_memory(monkeypatch, nvml) == {"value": 4.0, "unit": "MiB"}


def test_orins_nvml_is_a_stub(monkeypatch):
    result = nvml_memory(monkeypatch, FakeNvml(["Orin (nvgpu)"], [[(7, 1)]]))
    assert result["value"] is None
    assert result["reason"] == "NVML knows no memory of this GPU (Orin (nvgpu))"


def test_not_supported_is_no_zero(monkeypatch):
    result = nvml_memory(monkeypatch, FakeNvml(["X"], FakeNvml.NVMLError("Not Supported")))
    assert result == {"value": None, "unit": "MiB", "reason": "NVML: Not Supported"}
    result = nvml_memory(monkeypatch, FakeNvml(["X"], [[(7, None)]]))
    assert result["reason"] == "NVML lists no memory of this process"


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    gpu = GpuMemory("/", pid=7)
    gpu.start()
    assert gpu.finish()["gpu_memory"]["reason"] == "the package nvidia-ml-py is not installed"


def test_kept_files_are_closed():
    def open_files():
        return len(os.listdir("/proc/self/fd"))

    if read_text("/", "proc/self/status") is None:
        pytest.skip("no /proc")
    before = open_files()
    monitor = MemoryMonitor()
    monitor.start()
    assert before + 1 <= open_files() <= before + 2
    monitor.finish()
    assert open_files() == before
