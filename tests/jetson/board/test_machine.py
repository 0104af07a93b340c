"""Facts of the machine, from recorded /proc texts; the progress line."""

import io
import os
import subprocess
import sys

from edgeqlora_jetson.board.machine import measure_peak_rss_mib, parse_cpu_model, parse_meminfo_mib, read_machine
from edgeqlora_jetson.commands.progress import Elapsed, Progress, format_progress
from edgeqlora_jetson.files import write_text

JETSON = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "jetson")
ARM_CPUINFO = """processor\t: 0
BogoMIPS\t: 38.40
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd07
"""


def test_cpu_model():
    assert parse_cpu_model("processor\t: 0\nmodel name\t: AMD EPYC\n") == "AMD EPYC"
    assert parse_cpu_model(ARM_CPUINFO) == "ARM implementer 0x41 part 0xd07"
    assert parse_cpu_model("") is None


def test_memory():
    assert parse_meminfo_mib("MemTotal:        4059204 kB\nMemFree: 1 kB\n", "MemTotal") == 4059204 / 1024.0
    assert parse_meminfo_mib("", "MemTotal") is None


def test_machine_of_another_root(tmp_path):
    write_text(tmp_path / "proc/device-tree/model", "NVIDIA Jetson Nano Developer Kit\0")
    write_text(tmp_path / "proc/cpuinfo", ARM_CPUINFO)
    machine = read_machine(str(tmp_path))
    assert machine["board"] == "NVIDIA Jetson Nano Developer Kit"
    assert machine["cpu_model"].startswith("ARM")
    assert machine["memory_total_mib"] is None


def test_peak_memory_is_of_a_python():
    assert 5 < measure_peak_rss_mib() < 100000


def test_progress_text():
    assert format_progress("bench", 120, 500, 20.5) == "bench: 120 of 500 clips, 24 %, 1:05 left"
    assert format_progress("bench", 500, 500, 20.5) == "bench: 500 of 500 clips, 100 %"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(stream, every_s, n=30):
    now = [0.0]
    progress = Progress("bench", stream, clock=lambda: now[0])
    for i in range(1, n + 1):
        now[0] += every_s
        progress.update(i, n)
    progress.close()
    return stream.getvalue()


def test_a_log_gets_a_line_at_most_every_10_s():
    assert show(io.StringIO(), 0.1) == ""
    lines = show(io.StringIO(), 1.0).splitlines()
    assert [line.split(" clips")[0] for line in lines] == ["bench: 10 of 30", "bench: 20 of 30", "bench: 30 of 30"]


def test_a_terminal_gets_one_line_rewritten():
    text = show(Terminal(), 1.0)
    assert text.count("\n") == 1
    assert text.count("\r") == 30


def test_peak_memory_is_that_of_this_program_not_of_the_one_that_started_it(tmp_path):
    big = bytearray(200 * 2**20)
    big[::4096] = b"x" * len(big[::4096])
    code = "from edgeqlora_jetson.board.machine import measure_peak_rss_mib as m; print(m())"
    child = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, env=dict(os.environ, PYTHONPATH=JETSON)
    )
    if sys.platform == "linux":
        assert float(child.stdout) < 150 < measure_peak_rss_mib()


def test_peak_memory_from_the_status_file(tmp_path):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "status").write_text("VmPeak:\t 99 kB\nVmHWM:\t   2048 kB\n")
    assert measure_peak_rss_mib(root=str(tmp_path)) == 2.0


def test_elapsed_in_a_log_is_a_line_for_what_is_new_and_every_ten_seconds():
    stream = io.StringIO()
    elapsed = Elapsed(stream)
    for label, seconds in (("encoder", 0.0), ("encoder", 5.0), ("encoder", 71.0), ("decoder", 0.5)):
        elapsed.update(label, seconds)
    elapsed.close()
    assert stream.getvalue() == "encoder, 0:00\nencoder, 1:11\ndecoder, 0:00\n"


def test_elapsed_on_a_terminal_keeps_the_last_of_each_line():
    stream = io.StringIO()
    stream.isatty = lambda: True
    elapsed = Elapsed(stream)
    for label, seconds in (("encoder", 0.0), ("encoder", 0.1), ("encoder", 61.0), ("decoder", 0.5)):
        elapsed.update(label, seconds)
    elapsed.close()
    assert stream.getvalue() == "\rencoder, 0:00\rencoder, 1:01\n\rdecoder, 0:00\n"
