"""A whole bench run on made-up boards: power, energy, memory and heat end in the report, or say why not."""

import itertools
import os
import time

import pytest

pytest.importorskip("onnxruntime")

from fakes.boards import write_board_tree
from fakes.power import break_rail, is_running, recorded_lines, set_rail_mw, write_tegrastats

from edgeqlora_jetson.bench.run import Settings, run_bench
from edgeqlora_jetson.bench.table import format_table
from edgeqlora_jetson.board.detect import detect_board, load_boards
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.sensors.session import board_facts
from edgeqlora_jetson.soak.report import build_soak_report, format_soak
from edgeqlora_jetson.soak.run import SoakSettings, run_soak


@pytest.fixture
def orin_nano(tmp_path):
    root = str(tmp_path / "root")
    write_board_tree(root, "orin-nano-r36")
    return root


def bench(fixture_folder, root, progress=None, **settings):
    bundle = Bundle.load(fixture_folder)
    settings = Settings(
        **dict({"warmup": 1, "min_duration_s": 3.0, "idle_s": 1.0, "power_interval_s": 0.05}, **settings)
    )
    return run_bench(bundle, bundle.read_eval_clips(), settings, progress=progress, root=root)


def keep_alive(clock, root):
    """VDD_IN reads 5.25 W but for a mW: a sensor that lives never stands still."""
    powers_mw = itertools.cycle((5249, 5250, 5251))
    return clock.every(0.02, lambda: set_rail_mw(root, "VDD_IN", next(powers_mw)))


def test_an_orin_nano_by_its_sysfs(fixture_folder, orin_nano, virtual_time):
    """VDD_IN is 5.25 W throughout, idle and run."""
    keep_alive(virtual_time, orin_nano)
    report = bench(fixture_folder, orin_nano, power="ina")
    energy = report["energy"]
    assert report["board"]["id"] == "jetson-orin-nano"
    assert (energy["energy_scope"], energy["rails"]) == ("module_input", ["VDD_IN"])
    assert energy["mean_power"]["value"] == pytest.approx(5250.0, abs=1)
    assert energy["idle_power"]["value"] == pytest.approx(5250.0, abs=1)
    assert energy["energy"]["value"] == pytest.approx(5.25 * report["throughput"]["run_s"]["value"], rel=1e-3)
    assert energy["net_energy"]["value"] == pytest.approx(0.0, abs=0.01)
    audio_s = report["clips"]["audio_s"] * len(report["utterances"][0]["latency_ms"])
    assert energy["energy_per_audio_s"]["value"] == pytest.approx(energy["energy"]["value"] / audio_s)
    assert energy["coverage"] == 1.0
    assert energy["source"]["source"] == "ina"
    table = format_table(report)
    assert "at the module's input (VDD_IN), source ina" in table
    assert "Board     jetson-orin-nano" in table
    assert any("the run took" in warning for warning in report["validity"]["warnings"])


def test_tegrastats_that_dies_in_the_run_is_said(fixture_folder, orin_nano, tmp_path, monkeypatch):
    program = write_tegrastats(str(tmp_path / "bin"), [recorded_lines()[19]], die_after=15, stderr="nvgpu went away")
    monkeypatch.setenv("PATH", os.path.dirname(program) + os.pathsep + os.environ["PATH"])

    died_s = []

    def until_it_is_long_dead(n_done, n_total):
        if not is_running(str(tmp_path / "bin")):
            died_s.append(time.monotonic())
            if died_s[-1] - died_s[0] > 2.0:  # most of the run has no reading then
                raise KeyboardInterrupt

    report = bench(
        fixture_folder, orin_nano, until_it_is_long_dead, power="tegrastats", min_duration_s=600.0, idle_s=0.0
    )
    assert not report["validity"]["is_valid"]
    assert any("power source tegrastats ended during the run" in text for text in report["validity"]["problems"])
    assert report["energy"]["energy"]["value"] is None
    assert report["latency_ms"]["total"]["p50"]["value"] > 0


def test_a_rail_that_vanishes_makes_the_run_not_valid(fixture_folder, orin_nano, monkeypatch, virtual_time):
    from edgeqlora_jetson.sensors import session as sensors_module

    start_run = sensors_module.Sensors.start_run

    def start_run_and_break_the_rail(self):
        start_run(self)
        break_rail(orin_nano, "VDD_IN")

    monkeypatch.setattr(sensors_module.Sensors, "start_run", start_run_and_break_the_rail)
    report = bench(fixture_folder, orin_nano, power="ina")
    assert not report["validity"]["is_valid"]
    assert "power rail VDD_IN vanished" in report["validity"]["problems"][0]
    assert "VDD_IN vanished" in report["energy"]["energy"]["reason"]


def test_a_container_without_tegrastats_reads_the_rails_of_sys(fixture_folder, tmp_path, virtual_time):
    root = str(tmp_path / "root")
    write_board_tree(root, "container")
    report = bench(fixture_folder, root)
    assert report["energy"]["source"]["source"] == "ina"
    assert report["energy"]["notes"][0].startswith("tegrastats: there is no program tegrastats")


def test_a_machine_without_sensors_says_what_was_tried(fixture_folder, tmp_path):
    report = bench(fixture_folder, str(tmp_path), min_duration_s=0.0)
    assert report["energy"]["energy"]["value"] is None
    assert report["energy"]["energy"]["reason"].startswith("no power source: nvml")
    assert report["validity"]["is_valid"]


def test_a_source_asked_for_that_is_not_there_is_refused_before_any_work(fixture_folder, tmp_path):
    with pytest.raises(UserError, match="power source ina cannot be used here"):
        bench(fixture_folder, str(tmp_path), power="ina")


class Exported(object):
    def __init__(self, profile):
        self.manifest = {"profile": profile}


def test_whose_rails_are_counted(orin_nano, tmp_path):
    """A user's own profile for this board wins; a shipped one of another board never counts, known board or not."""
    boards = load_boards()
    known = detect_board(orin_nano)
    own = dict(boards["jetson-orin-nano"], name="my-carrier", total_rail="VIN_CARRIER", rails=["VIN_CARRIER"])
    thor = dict(boards["jetson-thor-t5000"], name="jetson-thor-t5000")
    assert board_facts(known, Exported(own))["total_rail"] == "VIN_CARRIER"
    assert (
        board_facts(known, Exported(dict(own, part_numbers=["p9999"], compatible=[], models=[])))
        == (boards["jetson-orin-nano"])
    )
    assert board_facts(known, Exported(thor)) == boards["jetson-orin-nano"]
    unknown = detect_board(str(tmp_path / "nothing"))
    assert board_facts(unknown, Exported(thor)) is None
    assert board_facts(unknown, None) is None


def soak_on(fixture_folder, root, power, during=lambda elapsed_s, soak: None):
    bundle = Bundle.load(fixture_folder)
    settings = SoakSettings(duration_s=60.0, interval_s=5.0, power=power, threads=1)
    soak, runtime, sensors = run_soak(bundle, bundle.read_eval_clips(), settings, progress=during, root=root)
    return build_soak_report(bundle, soak, runtime, sensors)


def test_a_soak_counts_energy_row_by_row_and_keeps_no_samples(fixture_folder, orin_nano, virtual_time):
    """5.25 W throughout: every row's energy is 5.25 W times its length, and the whole run needs no figure of its own."""
    keep_alive(virtual_time, orin_nano)
    virtual_time.step_s = 0.05
    report = soak_on(fixture_folder, orin_nano, "ina")
    assert (report["energy_scope"], report["rails"]) == ("module_input", ["VDD_IN"])
    for row in report["rows"]:
        assert row["energy_j"] == pytest.approx(5.25 * (row["end_s"] - row["start_s"]), rel=1e-3)
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["energy drift"]["value"]["value"] is not None
    assert "sensors" not in checks
    assert "Energy is that of VDD_IN (module_input)" in format_soak(report)


@pytest.mark.parametrize(("power_mw", "reason"), [(0, "reads 0"), (5250, "does not move")])
def test_a_soak_whose_sensor_is_dead_or_stuck_has_no_energy(fixture_folder, orin_nano, virtual_time, power_mw, reason):
    virtual_time.step_s = 0.05
    set_rail_mw(orin_nano, "VDD_IN", power_mw)
    report = soak_on(fixture_folder, orin_nano, "ina")
    assert {row["energy_j"] for row in report["rows"]} == {None}
    check = next(check for check in report["checks"] if check["name"] == "sensors")
    assert reason in check["detail"]
    assert report["verdict"] == "failed"


def test_a_soak_whose_rail_vanishes_fails(fixture_folder, orin_nano, virtual_time):
    virtual_time.step_s = 0.05
    alive = keep_alive(virtual_time, orin_nano)

    def break_once(elapsed_s, soak):
        if len(soak.rows) == 2:
            alive.join()
            break_rail(orin_nano, "VDD_IN")

    report = soak_on(fixture_folder, orin_nano, "ina", break_once)
    assert report["verdict"] == "failed"
    check = next(check for check in report["checks"] if check["name"] == "sensors")
    assert "power rail VDD_IN vanished" in check["detail"]
