"""The energy of a training run: RAPL and NVML counters, power of a GPU without a counter, nothing at all."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeqlora.training import resources as sensors
from edgeqlora.training.resources import EnergyMeter
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


def test_a_counter_that_wraps_around_between_polls(tmp_path: Path):
    write_package(tmp_path, 0, 999_000_000)
    meter = EnergyMeter(str(tmp_path))
    write_package(tmp_path, 0, 1_000_000)
    meter.poll()
    write_package(tmp_path, 0, 999_500_000)
    meter.poll()
    write_package(tmp_path, 0, 500_000)
    assert meter.read()["value"] == 1001.5


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


class Gpu(PowerSource):
    """A GPU of 50 W without an energy counter, read at given times."""

    name = "nvml"

    def __init__(self, times_s: list[float]):
        super().__init__()
        self.times_s = times_s

    def poll(self) -> list[Sample]:
        return [Sample(self.times_s.pop(0), {"gpu0": 50000.0}, {})]


@pytest.mark.parametrize(("times_s", "energy_j"), [([0, 4, 8, 10], 500.0), ([0, 2, 10, 25], None)])
def test_power_is_integrated_where_the_polls_are_close(
    monkeypatch: pytest.MonkeyPatch, times_s: list[float], energy_j: float | None
):
    answer: Any = (Gpu(list(times_s)), Scope("gpu_board", ("gpu0",)), [])
    monkeypatch.setattr(sensors, "open_power_source", lambda name, root: answer)
    clock = iter([0.0, float(times_s[-1])])  # when the meter is made, and when it is read
    monkeypatch.setattr(sensors, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    meter = EnergyMeter()
    for _ in times_s[1:-1]:
        meter.poll()
    figure = meter.read()
    assert figure["value"] == energy_j
    if energy_j is None:
        assert figure["reason"] == "power was read in 10.0 of 25.0 s, at least 90% needed"
    else:
        assert figure["energy_scope"] == "gpu_board"
