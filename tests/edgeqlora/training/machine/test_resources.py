"""The energy of a training run: a thread reads counters and powers; nothing at all; sensors that die or stand still."""

import sys
import time
from pathlib import Path

import pytest

from edgeqlora.training.machine import resources
from edgeqlora.training.machine.resources import EnergyMeter
from edgeqlora_jetson.power import PowerSource, Sample, Scope


def write_package(root: Path, number: int, energy_uj: int, name: str | None = None) -> None:
    zone = root / "sys" / "class" / "powercap" / f"intel-rapl:{number}"
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "name").write_text(name or f"package-{number}")
    (zone / "energy_uj").write_text(f"{energy_uj}\n")
    (zone / "max_energy_range_uj").write_text("1000000000\n")


@pytest.fixture(autouse=True)
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


def test_packages_are_added_and_psys_is_not(tmp_path: Path):
    for number in (0, 1):
        write_package(tmp_path, number, 1_000_000)
    write_package(tmp_path, 2, 1_000_000, "psys")
    meter = EnergyMeter(str(tmp_path))
    write_package(tmp_path, 0, 4_000_000)
    write_package(tmp_path, 1, 1_500_000)
    write_package(tmp_path, 2, 900_000_000, "psys")
    figure = meter.read()
    assert (figure["value"], figure["unit"]) == (3.5, "J")
    assert (figure["energy_scope"], figure["source"]) == ("cpu_package", "rapl")
    assert 0 <= figure["duration_s"] < 60
    assert "not the memory, the board or the power supply" in figure["meaning"]


def test_nothing_to_measure_with(tmp_path: Path):
    figure = EnergyMeter(str(tmp_path)).read()
    assert figure["value"] is None
    assert "rapl: no energy counter: /sys/class/powercap has no intel-rapl package" in figure["reason"]
    assert "nvml: " in figure["reason"]


def test_a_counter_that_vanishes(tmp_path: Path):
    write_package(tmp_path, 0, 0)
    meter = EnergyMeter(str(tmp_path))
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    assert "package-0 cannot be read any more" in meter.read()["reason"]


def test_a_counter_that_stands_still(tmp_path: Path):
    write_package(tmp_path, 0, 1_000_000)
    figure = EnergyMeter(str(tmp_path)).read()
    assert figure["value"] is None
    assert "the sensor reads 0: package-0" in figure["reason"]


class Scripted(PowerSource):
    """A source of 50 W that gives readings 1 mW apart until it falls asleep, dies or stands still."""

    name, interval_s = "scripted", 0.01

    def __init__(self, ends: str = ""):
        super().__init__()
        self.rails, self.n, self.ends = ("gpu0",), 0, ends

    def poll(self) -> list[Sample]:
        self.n += 1
        if self.ends == "dies" and self.n > 10:
            self.error = "it died"
            return []
        return [Sample(time.monotonic(), {"gpu0": 50000.0 + (self.n % 2 if self.ends != "still" else 0)}, {})]


@pytest.mark.parametrize(("ends", "reason"), [("", None), ("dies", "it died"), ("still", "the sensor does not move: ")])
def test_power_is_read_by_a_thread_while_nobody_asks(monkeypatch: pytest.MonkeyPatch, ends: str, reason: str | None):
    source = Scripted(ends)
    answer = (source, Scope("gpu_board", source.rails), [])
    monkeypatch.setattr(resources, "open_power_source", lambda *args, **kwargs: answer)
    meter = EnergyMeter()
    time.sleep(0.4)  # as in an evaluation
    figure = meter.read()
    if reason is not None:
        assert figure["value"] is None
        assert reason in figure["reason"]
        return
    assert figure["value"] == pytest.approx(50 * figure["duration_s"], rel=1e-2)
    assert 0.35 < figure["duration_s"] < 5
    assert figure["coverage"] == 1.0
