"""Small files of the kernel: read once, read again, read whole; programs asked without a shell."""

import os
import sys

import pytest

from edgeqlora_jetson.board.sysfs import KeptFile, find, parse_int, read_int, read_text, run_command, runner


def test_texts_lose_their_end_only(tmp_path):
    (tmp_path / "compatible").write_bytes(b"nvidia,p3767-0005\0nvidia,tegra234\0")
    (tmp_path / "temp").write_text(" 44531\n")
    assert read_text(str(tmp_path), "compatible") == "nvidia,p3767-0005\0nvidia,tegra234"
    assert read_int(str(tmp_path), "/temp") == 44531
    assert read_text(str(tmp_path), "none") is None
    assert read_int(str(tmp_path), "compatible") is None


def test_numbers():
    assert [parse_int(text) for text in ("-256000", "7", "", None, "1.5", "0x10", "<unknown>")] == [
        -256000,
        7,
        None,
        None,
        None,
        None,
        None,
    ]


def test_numbered_folders_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 2, 1):
        (tmp_path / "sys" / "zone{}".format(number)).mkdir(parents=True)
    assert find(str(tmp_path), "/sys/zone*") == ["sys/zone1", "sys/zone2", "sys/zone10"]
    # A root whose own name looks like a pattern.
    odd = tmp_path / "a[1]*"
    (odd / "sys").mkdir(parents=True)
    assert find(str(odd), "s*") == ["sys"]


def test_a_kept_file_sees_changes_until_it_is_closed(tmp_path):
    path = tmp_path / "value"
    path.write_text("1\n")
    kept = KeptFile(str(tmp_path), "value")
    assert kept.read_int() == 1
    path.write_text("23\n")
    assert kept.read_int() == 23
    kept.close()
    assert kept.read() is None
    kept.close()
    assert KeptFile(str(tmp_path), "none").read() is None


def test_long_files_of_the_kernel_are_read_whole():
    whole = read_text("/", "proc/zoneinfo")
    if whole is None or len(whole) <= 4096:
        pytest.skip("no /proc/zoneinfo longer than a page")
    kept = KeptFile("/", "proc/zoneinfo", is_long=True)
    assert kept.read().count("cpu:") == whole.count("cpu:")
    assert len(kept.read()) > 4096
    kept.close()


def test_programs():
    code, output = run_command([sys.executable, "-c", "import sys; print(sys.stdin.read() == ''); sys.exit(3)"])
    assert (code, output.strip()) == (3, "True")
    code, output = run_command(["no-such-program-here"])
    assert code is None
    assert output.startswith("No such file or directory")
    code, output = run_command([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.2)
    assert (code, output) == (None, "did not end within 0.2 s")


def test_this_machines_programs_are_not_asked_about_another_root(tmp_path):
    assert runner(str(tmp_path))(["nvpmodel", "-q"]) == (None, "nvpmodel is not asked for another root")
    assert runner("/") is run_command
    assert runner(os.path.join("/", ".")) is run_command

    def mine(argv):
        return 0, "x"

    assert runner(str(tmp_path), mine) is mine
