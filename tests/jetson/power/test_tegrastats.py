"""The rails of every recorded line of tegrastats; tegrastats as a child process that does what real ones do."""

import os
import re
import time
import types

import pytest
from fakes import power as fake_power
from fixtures.tegrastats_expected import EXPECTED

from edgeqlora_jetson.board.detect import load_boards
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.power import Unavailable, rail_table, resolve_scope
from edgeqlora_jetson.power.tegrastats import TegrastatsSource
from edgeqlora_jetson.power.tegrastats_line import parse_line

HERE = os.path.dirname(os.path.abspath(__file__))
BOARDS = {
    "nano": "jetson-nano",
    "tx2": "jetson-tx2",
    "xavier-nx": "jetson-xavier-nx-16gb",
    "orin-nano": "jetson-orin-nano",
    "orin-nx": "jetson-orin-nx-8gb",
    "agx-xavier": "jetson-agx-xavier-64gb",
    "agx-orin": "jetson-agx-orin-32gb",
    "thor": "jetson-thor-t5000",
}
TABLES = {name: rail_table(load_boards()[board_id]) for name, board_id in BOARDS.items()}
LINES = fake_power.recorded_lines()
ORIN_NANO, THOR = LINES[21], LINES[37]


def test_the_table_is_of_all_recorded_lines():
    assert len(LINES) == len(EXPECTED) == 41
    assert [row["line"] for row in EXPECTED] == list(range(1, 42))


@pytest.mark.real
def test_the_recorded_lines_are_those_of_the_reference(shared):
    reference = (shared / "reference" / "tegrastats_samples.txt").read_text()
    with open(os.path.join(HERE, "..", "fixtures", "tegrastats_lines.txt")) as file:
        assert reference == file.read()


@pytest.mark.parametrize("row", EXPECTED, ids=lambda row: "{}-{}".format(row["line"], row["device"]))
def test_recorded_line(row):
    line = parse_line(LINES[row["line"] - 1])
    assert line.rails_mw == row.get("rails", {})
    assert sorted(line.dropped) == row.get("dropped", [])
    assert line.unknown == row.get("unknown", [])
    assert line.is_stats
    if row["total_mw"] is None:
        with pytest.raises(UserError, match=r"no power rail was seen.*sudo"):
            resolve_scope(TABLES[row["device"]], list(line.rails_mw))
    else:
        scope = resolve_scope(TABLES[row["device"]], list(line.rails_mw))
        assert sum(line.rails_mw[rail] for rail in scope.rails) == row["total_mw"]


def test_temperature_zones_and_rails_of_one_name_stay_apart():
    # AGX Xavier has rails GPU, CPU, SOC, CV and zones GPU, CPU, and a field CPU with the cores.
    line = parse_line(LINES[14])
    assert (line.rails_mw["GPU"], line.rails_mw["CPU"]) == (18401, 2301)


def test_thor_without_vin_is_a_sum_and_never_vin_sys_5v0():
    line = parse_line(LINES[36])
    assert "VIN" not in line.rails_mw
    scope = resolve_scope(TABLES["thor"], list(line.rails_mw))
    assert scope == ("sum_of_rails", ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"))


def test_negative_rail_counts_as_negative():
    line = parse_line(LINES[40])
    assert line.rails_mw["VDD_GPU"] == -392
    parts = resolve_scope(TABLES["thor"], [rail for rail in line.rails_mw if rail != "VIN"])
    assert sum(line.rails_mw[rail] for rail in parts.rails) == 8596  # -392 + 3924 + 5064


@pytest.mark.parametrize(
    "text",
    ["", "\0", "[", "CPU [", "VDD_IN", "VDD_IN 12/", "VDD_IN 12mW/13", "VDD_IN 12/13mW", "VDD_IN 12mW/13m", "RAM 1/2"],
)
def test_pieces_of_fields_are_unknown_and_not_values(text):
    line = parse_line(text)
    assert not line.is_stats
    assert line.unknown == text.replace("\0", " ").split()


def test_two_lines_run_into_one_give_no_rail_that_differs():
    line = parse_line(LINES[23] + " " + LINES[22])
    assert list(line.rails_mw) == []
    assert line.dropped["VDD_IN"] == "given twice with different values"


def test_one_clock_for_all_cores_after_the_bracket():
    assert parse_line("CPU [5%,off,7%]@1428") == ({}, {}, [], True)


def test_endless_numbers_are_no_error():
    text = "VDD_IN {0}/{0} cpu@{0}C RAM {0}/{0}MB CPU [{0}%@{0}] GR3D_FREQ {0}%".format("9" * 5000)
    assert not parse_line(text).is_stats


# The program


@pytest.fixture
def tegrastats(tmp_path):
    def make(lines, **options):
        return fake_power.write_tegrastats(tmp_path / "bin", lines, **options)

    return make


def wait_for(condition, timeout_s=60):
    end_s = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end_s:
        time.sleep(0.01)
    assert condition()


def collect(source, n):
    samples = []

    def is_enough():
        samples.extend(source.poll())
        return len(samples) >= n or source.error

    wait_for(is_enough)
    return samples


def test_samples_are_stamped_as_they_arrive(tegrastats, tmp_path):
    source = TegrastatsSource(interval_s=0.03, program=tegrastats([ORIN_NANO, LINES[22]]), root=str(tmp_path))
    assert source.rails == ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")
    assert source.poll() == []  # nothing of the probe is left
    started_s = time.monotonic()
    source.start()
    wait_for(lambda: source.describe()["n_lines"] >= 6)
    arrived_s = time.monotonic()
    samples = source.poll()
    source.stop()
    assert [s.rails_mw["VDD_IN"] for s in samples[:4]] == [4046, 5608, 4046, 5608]
    assert all(isinstance(v, float) for v in samples[0].rails_mw.values())
    assert samples[0].counters_j == {}
    times = [s.time_s for s in samples]
    assert started_s < times[0]
    assert times == sorted(times)
    assert times[5] <= arrived_s
    assert (tmp_path / "bin" / "arguments.json").read_text() == '["--interval", "30"]'
    assert source.error is None
    description = source.describe()
    assert description["n_lines"] >= 6
    assert description["unknown"] == []
    assert description["averaging_s"] is None


def test_averaging_comes_from_the_chip(tegrastats, tmp_path):
    fake_power.write_power_tree(tmp_path / "root", "orin-nano-r36")
    source = TegrastatsSource(interval_s=0.02, program=tegrastats([ORIN_NANO]), root=str(tmp_path / "root"))
    assert source.averaging_s == 0.43


def test_it_is_found_on_path(tegrastats, tmp_path, monkeypatch):
    path = tegrastats([ORIN_NANO])
    monkeypatch.setenv("PATH", os.path.dirname(path))
    assert TegrastatsSource(interval_s=0.02, root=str(tmp_path)).program == path


def test_it_is_found_in_usr_bin_of_the_root(tmp_path, monkeypatch):
    path = fake_power.write_tegrastats(tmp_path / "usr/bin", [ORIN_NANO])
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert TegrastatsSource(interval_s=0.02, root=str(tmp_path)).program == path


def test_no_tegrastats(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="no program tegrastats on PATH; in a container mount it"):
        TegrastatsSource(root=str(tmp_path))


def test_death_in_the_middle_of_a_line_is_said_and_the_piece_is_dropped(tegrastats, tmp_path):
    program = tegrastats([ORIN_NANO], die_after=4, exit_code=3, stderr="warning\nUnable to read /dev/nvmap\n")
    source = TegrastatsSource(interval_s=0.02, program=program, root=str(tmp_path))
    source.start()
    samples = []

    def has_died():
        samples.extend(source.poll())
        return source.error

    wait_for(has_died)
    samples += source.poll()
    assert len(samples) == 4
    assert all(len(sample.rails_mw) == 3 for sample in samples)
    assert source.error == ('tegrastats died, exit code 3; it said "Unable to read /dev/nvmap"')
    source.stop()


def test_death_by_signal_is_said(tegrastats, tmp_path):
    source = TegrastatsSource(interval_s=0.02, program=tegrastats([ORIN_NANO]), root=str(tmp_path))
    source.start()
    collect(source, 1)
    os.kill(int((tmp_path / "bin" / "tegrastats.pid").read_text()), 9)
    wait_for(lambda: source.poll() is not None and source.error)
    assert source.error == "tegrastats died, killed by signal 9"
    source.stop()


def test_a_program_that_does_not_end_is_killed(tegrastats, tmp_path, monkeypatch):
    monkeypatch.setattr("edgeqlora_jetson.power.tegrastats._END_S", 0.2)
    program = tegrastats([ORIN_NANO], ignore_terminate=True)
    source = TegrastatsSource(interval_s=0.02, program=program, root=str(tmp_path))
    source.start()
    collect(source, 1)
    pid = int((tmp_path / "bin" / "tegrastats.pid").read_text())
    source.stop()
    source.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert source.error is None  # ended by us


def test_silence_is_an_error(tegrastats, tmp_path, monkeypatch):
    source = TegrastatsSource(interval_s=0.02, program=tegrastats([ORIN_NANO], hang_after=2), root=str(tmp_path))
    source.start()
    collect(source, 2)
    later = types.SimpleNamespace(monotonic=lambda: time.monotonic() + 3600.0)
    monkeypatch.setattr("edgeqlora_jetson.power.tegrastats.time", later)
    source.poll()
    assert re.fullmatch(r"tegrastats has printed nothing for 36\d\d s", source.error)
    source.stop()


def test_messages_between_the_lines_are_no_samples(tegrastats, tmp_path):
    program = tegrastats(["nvmap: cannot open", ORIN_NANO, ""])
    source = TegrastatsSource(interval_s=0.02, program=program, root=str(tmp_path))
    source.start()
    samples = collect(source, 3)
    source.stop()
    assert [s.rails_mw["VDD_IN"] for s in samples[:3]] == [4046.0] * 3
    assert source.describe()["n_messages"] >= 3


@pytest.mark.parametrize("line", [LINES[11], LINES[16], LINES[33]])
def test_hidden_rails(tegrastats, tmp_path, monkeypatch, line):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(Unavailable, match=r"prints no power rails: some releases hide them .* run with sudo"):
        TegrastatsSource(interval_s=0.02, program=tegrastats([line]), root=str(tmp_path))


def test_a_program_that_dies_at_once(tegrastats, tmp_path):
    with pytest.raises(Unavailable, match='it died at once, exit code 1; it said "must be root"'):
        TegrastatsSource(
            interval_s=0.02, program=tegrastats([ORIN_NANO], die_after=0, stderr="must be root\n"), root=str(tmp_path)
        )


def test_a_program_that_does_not_start(tmp_path):
    (tmp_path / "tegrastats").write_text("not a program")
    (tmp_path / "tegrastats").chmod(0o755)
    with pytest.raises(Unavailable, match="tegrastats does not start: Exec format error"):
        TegrastatsSource(program=str(tmp_path / "tegrastats"), root=str(tmp_path))


def test_the_replaying_program_honours_logfile_and_stop(tegrastats, tmp_path):
    import subprocess

    program = tegrastats([ORIN_NANO])
    log = tmp_path / "log.txt"
    child = subprocess.Popen([program, "--interval", "10", "--logfile", str(log)])
    wait_for(lambda: log.exists() and log.read_text().count("\n") >= 2)
    subprocess.check_call([program, "--stop"])
    assert child.wait(60) == -15
    assert log.read_text().startswith(ORIN_NANO)
