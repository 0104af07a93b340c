"""Energy counters of workstations: RAPL in a made-up /sys, NVML through a stand-in for nvidia-ml-py."""

import itertools
import os
import sys
import types

import pytest
from fakes import power as fake_power

from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.power import Unavailable, open_power_source
from edgeqlora_jetson.power.combined import CombinedSource
from edgeqlora_jetson.power.energy import measure_energy
from edgeqlora_jetson.power.nvml import NvmlSource, parse_visible_devices
from edgeqlora_jetson.power.rapl import RaplSource, gained_uj


@pytest.fixture
def workstation(tmp_path):
    fake_power.write_power_tree(tmp_path, "workstation")
    return str(tmp_path)


def set_zone(root, number, energy_uj):
    folder = os.path.join(root, "sys/class/powercap/intel-rapl:" + number)
    fake_power.write_file(folder, "energy_uj", str(energy_uj))


def test_rapl_counts_packages_and_neither_psys_nor_their_parts(workstation):
    source = RaplSource(root=workstation)
    assert source.rails == ("package-0", "package-1")
    assert source.resolve_scope(None) == ("cpu_package", ("package-0", "package-1"))
    source.start()
    for number, energy_uj in (("0", 3500000), ("0:0", 9e6), ("0:1", 9e6), ("1", 1250000), ("2", 99000000)):
        set_zone(workstation, number, int(energy_uj))
    (sample,) = source.poll()
    assert sample.counters_j == {"package-0": 2.5, "package-1": 0.25}
    assert sample.rails_mw == {}
    assert source.describe()["averaging_from"] == "a counter does not average"
    source.stop()


def test_rapl_counter_wraps_around(workstation):
    set_zone(workstation, "0", 262143328850 - 1000000)
    source = RaplSource(root=workstation)
    source.start()
    set_zone(workstation, "0", 2000000)
    assert source.poll()[0].counters_j["package-0"] == 3.0
    set_zone(workstation, "0", 2500000)
    assert source.poll()[0].counters_j["package-0"] == 3.5


@pytest.mark.parametrize(("before", "now", "gained"), [(5, 5, 0), (5, 9, 4), (98, 3, 5), (100, 0, 0)])
def test_gained(before, now, gained):
    assert gained_uj(before, now, 100) == gained


def test_rapl_without_permission(workstation):
    fake_power.write_broken(os.path.join(workstation, "sys/class/powercap/intel-rapl:1"), "energy_uj")
    with pytest.raises(
        Unavailable, match=r"energy counter not readable \(Input/output error\): RAPL needs root on most"
    ):
        RaplSource(root=workstation)


def test_rapl_counter_that_vanishes(workstation):
    source = RaplSource(root=workstation)
    source.start()
    fake_power.write_broken(os.path.join(workstation, "sys/class/powercap/intel-rapl:1"), "energy_uj")
    (sample,) = source.poll()
    assert sorted(sample.counters_j) == ["package-0"]
    assert source.error.startswith("RAPL package-1 cannot be read any more")


class Nvml(types.ModuleType):
    """The functions of nvidia-ml-py that are used; GPUs are dicts: uuid, name, energy_mj and power_mw or None."""

    class NVMLError(Exception):
        pass

    def __init__(self, gpus, as_bytes=False):
        super().__init__("pynvml")
        self.gpus, self.as_bytes, self.n_open = gpus, as_bytes, 0

    def text(self, value):
        return value.encode() if self.as_bytes else value

    def nvmlInit(self):
        self.n_open += 1

    def nvmlShutdown(self):
        self.n_open -= 1

    def nvmlSystemGetDriverVersion(self):
        return self.text("595.78")

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, i):
        return self.gpus[i]

    def nvmlDeviceGetUUID(self, gpu):
        return self.text(gpu["uuid"])

    def nvmlDeviceGetName(self, gpu):
        return self.text(gpu["name"])

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu):
        return self.get(gpu, "energy_mj")

    def nvmlDeviceGetPowerUsage(self, gpu):
        return self.get(gpu, "power_mw")

    def get(self, gpu, key):
        assert self.n_open == 1, "NVML is closed"
        if gpu[key] is None:
            raise self.NVMLError("Not Supported")
        return gpu[key]


@pytest.fixture
def nvml(monkeypatch):
    def make(*gpus, **options):
        module = Nvml(list(gpus), **options)
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return module

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return make


def gpu(number=0, energy_mj=1000000, power_mw=60000):
    uuid = "GPU-{}a1b2c3d-0000".format(number)
    return {"uuid": uuid, "name": "RTX {}".format(number), "energy_mj": energy_mj, "power_mw": power_mw}


@pytest.mark.parametrize("as_bytes", [False, True])
def test_nvml_counts_energy_where_it_can(nvml, as_bytes):
    module = nvml(gpu(0), gpu(1, energy_mj=50), as_bytes=as_bytes)
    source = NvmlSource()
    assert (source.kind, source.rails) == ("counter", ("gpu0", "gpu1"))
    assert source.resolve_scope(None) == ("gpu_board", ("gpu0", "gpu1"))
    source.start()
    module.gpus[0]["energy_mj"] += 2500
    (sample,) = source.poll()
    assert sample.counters_j == {"gpu0": 2.5, "gpu1": 0.0}
    assert (source.describe()["gpus"], source.describe()["driver"]) == ({"gpu0": "RTX 0", "gpu1": "RTX 1"}, "595.78")
    source.stop()
    source.stop()
    assert module.n_open == 0
    source.start()
    assert source.poll()[0].counters_j["gpu0"] == 2.5  # goes on


def test_nvml_reads_power_where_one_gpu_has_no_counter(nvml):
    nvml(gpu(0), gpu(1, energy_mj=None, power_mw=38500))
    source = NvmlSource()
    assert source.kind == "power"
    source.start()
    (sample,) = source.poll()
    assert (sample.rails_mw, sample.counters_j) == ({"gpu0": 60000.0, "gpu1": 38500.0}, {})


def test_nvml_not_supported_is_an_error_and_not_zero(nvml):
    # Orin, even on JetPack 7.2: NVML starts, finds one GPU, and knows nothing.
    module = nvml({"uuid": "GPU-0", "name": "Orin (nvgpu)", "energy_mj": None, "power_mw": None})
    with pytest.raises(Unavailable) as error:
        NvmlSource()
    assert str(error.value) == "NVML knows gpu0 (Orin (nvgpu)) but neither its energy nor its power: Not Supported"
    assert module.n_open == 0
    with pytest.raises(UserError, match=r"power source nvml cannot be used here: NVML knows gpu0 \(Orin"):
        open_power_source("nvml")


def test_nvml_gpu_that_vanishes(nvml):
    module = nvml(gpu(0), gpu(1))
    source = NvmlSource()
    source.start()
    module.gpus[1]["energy_mj"] = None
    (sample,) = source.poll()
    assert list(sample.counters_j) == ["gpu0"]
    assert source.error == "NVML: gpu1 does not answer any more: Not Supported"


def test_nvml_without_package_driver_or_gpu(nvml, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(Unavailable, match="the package nvidia-ml-py is not installed"):
        NvmlSource()
    module = nvml()
    with pytest.raises(Unavailable, match="NVML lists 0 GPUs and CUDA_VISIBLE_DEVICES=None leaves none"):
        NvmlSource()

    def no_driver():
        raise module.NVMLError("Driver Not Loaded")

    module.nvmlInit = no_driver
    with pytest.raises(Unavailable, match="NVML does not work here: Driver Not Loaded"):
        NvmlSource()


def test_nvml_counts_the_gpus_of_this_process(nvml, monkeypatch):
    nvml(gpu(0), gpu(1), gpu(2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert NvmlSource().rails == ("gpu2", "gpu0")


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        (None, (0, 1, 2)),
        ("", ()),
        ("-1", ()),
        ("1", (1,)),
        ("2, 0", (2, 0)),
        ("0,7,1", (0,)),
        ("1,1", (1,)),
        ("GPU-bb", (1,)),
        ("GPU-b,0", (1, 0)),
        ("GPU-", ()),
        ("x", ()),
    ],
)
def test_visible_devices(text, chosen):
    assert parse_visible_devices(text, ["GPU-aa11", "GPU-bb22", "GPU-cc33"]) == chosen


def test_a_mig_slice_is_not_a_board():
    with pytest.raises(Unavailable, match=r"CUDA_VISIBLE_DEVICES=MIG-7 is a MIG slice, and NVML measures whole GPUs"):
        parse_visible_devices("MIG-7", ["GPU-aa11"])


def test_gpu_and_processor_together(nvml, workstation, monkeypatch):
    module = nvml(gpu(0))
    monkeypatch.setattr("edgeqlora_jetson.power.combined.NvmlSource", lambda interval_s, root: NvmlSource(interval_s))
    source = CombinedSource(root=workstation)
    scope = source.resolve_scope(None)
    assert (source.kind, scope) == ("counter", ("cpu_package+gpu_board", ("gpu0", "package-0", "package-1")))
    source.start()
    samples = source.poll()
    set_zone(workstation, "0", 1000000 + 4000000)
    module.gpus[0]["energy_mj"] += 6000
    samples += source.poll()
    source.stop()
    first, last = (sample.time_s for sample in samples)
    result = measure_energy(samples, first, last, scope)
    assert result["energy"]["value"] == pytest.approx(10.0)
    assert {rail: figure["value"] for rail, figure in result["per_rail"].items()} == pytest.approx(
        {"gpu0": 6.0, "package-0": 4.0, "package-1": 0.0}
    )
    assert sorted(source.describe()["rapl"]["paths"]) == ["package-0", "package-1"]


def test_without_gpu_there_is_no_combination(workstation, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(Unavailable, match=r"NVML speaks for this machine only"):
        CombinedSource(root=workstation)


def test_counters_and_powers_that_stand_still_give_no_energy(nvml, workstation, monkeypatch, virtual_time):
    """RAPL in a virtual machine, a GPU whose counter or power never changes, and one half of both together."""
    fake_power.assert_no_energy(
        *fake_power.run_with(virtual_time, RaplSource(0.02, workstation)), "the sensor reads 0: package-0"
    )
    nvml(gpu(0))
    fake_power.assert_no_energy(*fake_power.run_with(virtual_time, NvmlSource(0.02)), "the sensor reads 0: gpu0")
    nvml(gpu(0, energy_mj=None))
    fake_power.assert_no_energy(*fake_power.run_with(virtual_time, NvmlSource(0.02)), "the sensor does not move")
    nvml(gpu(0, energy_mj=None, power_mw=0))
    fake_power.assert_no_energy(*fake_power.run_with(virtual_time, NvmlSource(0.02)), "the sensor reads 0: gpu0")
    monkeypatch.setattr("edgeqlora_jetson.power.combined.NvmlSource", lambda interval_s, root: NvmlSource(interval_s))
    nvml(gpu(0))
    with fake_power.live_package(virtual_time, workstation, 0, itertools.count(1000000, 100000)):
        energy, problems = fake_power.run_with(virtual_time, CombinedSource(0.02, workstation))
    fake_power.assert_no_energy(energy, problems, "the sensor reads 0: gpu0 + package-1")


def test_a_counter_that_wraps_around_many_times_in_a_run(tmp_path, virtual_time):
    """10 W in a counter of 1 J: it starts again from 0 ten times a second."""
    fake_power.write_power_tree(tmp_path, "workstation")
    for number in (0, 1):
        folder = str(tmp_path / "sys/class/powercap/intel-rapl:{}".format(number))
        fake_power.write_file(folder, "max_energy_range_uj", "1000000")
        fake_power.write_file(folder, "energy_uj", "0")
    start_s = virtual_time.now_s
    live = (int((virtual_time.now_s - start_s) * 1e7) % 1000000 for _ in itertools.count())
    with fake_power.live_package(virtual_time, tmp_path, 0, live, 0.005), fake_power.live_package(
        virtual_time, tmp_path, 1, itertools.count(1), 0.005
    ):
        energy, problems = fake_power.run_with(virtual_time, RaplSource(0.02, str(tmp_path)))
    assert energy["mean_power"]["value"] == pytest.approx(10000, rel=0.02)
    assert problems == []
