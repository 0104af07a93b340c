"""The jtop source against a stand-in for the documented client of jetson-stats."""

import re
import sys
import threading
import time
import types

import pytest
from fakes import power as fake_power
from test_tegrastats import TABLES

from edgeqlora_jetson.power import Unavailable
from edgeqlora_jetson.power.jtop import JtopSource, parse_rails_mw

# As the documentation of jtop.power shows it: volt mV, curr mA, power mW, avg mW.
ORIN_NANO = {
    "rail": {
        "VDD_CPU_GPU_CV": {"volt": 4992, "curr": 144, "power": 718, "avg": 700, "warn": 32760, "crit": 32760},
        "VDD_SOC": {"volt": 4992, "curr": 360, "power": 1797, "avg": 1790},
    },
    "tot": {"volt": 4992, "curr": 1054, "power": 5261, "avg": 5250, "name": "VDD_IN"},
}
AGX_ORIN = {
    "rail": {"VDD_GPU_SOC": {"power": 4800}, "VDD_CPU_CV": {"power": 1000}, "VIN_SYS_5V0": {"power": 4440}},
    "tot": {"power": 10240, "avg": 10200},
}


def test_the_input_rail_comes_back_under_its_name():
    assert parse_rails_mw(ORIN_NANO) == {"VDD_CPU_GPU_CV": 718.0, "VDD_SOC": 1797.0, "VDD_IN": 5261.0}


@pytest.mark.parametrize("name", [None, "ALL", ""])
def test_a_sum_is_no_rail(name):
    power = dict(AGX_ORIN, tot=dict(AGX_ORIN["tot"], name=name))
    assert parse_rails_mw(power) == {"VDD_GPU_SOC": 4800.0, "VDD_CPU_CV": 1000.0, "VIN_SYS_5V0": 4440.0}


@pytest.mark.parametrize(
    "power", [None, {}, {"rail": None, "tot": None}, {"rail": {"A": {"online": False, "power": 3}}}]
)
def test_no_rails(power):
    assert parse_rails_mw(power) == {}


class Client(object):
    """jtop.jtop: calls its observers from a thread of its own."""

    power = ORIN_NANO
    fails = None
    clients = []

    def __init__(self, interval=1.0):
        self.interval, self.observers, self.closed = interval, [], False
        Client.clients.append(self)

    def attach(self, observer):
        self.observers.append(observer)

    def start(self):
        if self.fails:
            raise RuntimeError(self.fails)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.closed:
            time.sleep(self.interval)
            for observer in self.observers:
                observer(self)

    def close(self):
        self.closed = True
        self.thread.join()


@pytest.fixture
def jtop(monkeypatch):
    def make(**attributes):
        module = types.ModuleType("jtop")
        module.__version__ = "7.2.2"
        module.jtop = type("jtop", (Client,), attributes)
        monkeypatch.setitem(sys.modules, "jtop", module)

    Client.clients[:] = []
    return make


def test_samples_of_the_service(jtop):
    jtop()
    source = JtopSource(interval_s=0.02)
    assert source.resolve_scope(TABLES["orin-nano"]) == ("module_input", ("VDD_IN",))
    assert source.poll() == []
    source.start()
    samples = []
    end_s = time.monotonic() + 10
    while len(samples) < 3 and time.monotonic() < end_s:
        samples += source.poll()
        time.sleep(0.01)
    source.stop()
    assert [sample.rails_mw["VDD_IN"] for sample in samples[:3]] == [5261.0] * 3
    assert samples[0].time_s < samples[1].time_s < samples[2].time_s
    assert source.error is None
    assert source.describe()["version"] == "7.2.2"
    assert all(client.closed for client in Client.clients)


def test_its_total_of_agx_orin_is_not_used(jtop):
    jtop(power=AGX_ORIN)
    scope = JtopSource(interval_s=0.02).resolve_scope(TABLES["agx-orin"])
    assert scope == ("sum_of_rails", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))


def test_a_service_that_falls_silent(jtop, monkeypatch):
    jtop(run=lambda client: [observer(client) for observer in client.observers])
    source = JtopSource(interval_s=0.02)
    source.start()
    Client.clients[-1].thread.join()
    source.poll()
    assert source.error is None
    later = types.SimpleNamespace(monotonic=lambda: time.monotonic() + 3600.0)
    monkeypatch.setattr("edgeqlora_jetson.power.jtop.time", later)
    source.poll()
    assert re.fullmatch(r"the jtop service has sent nothing for 36\d\d s", source.error)
    source.stop()


def test_not_installed_and_not_running(jtop, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jtop", None)
    with pytest.raises(Unavailable, match=r"the package jetson-stats is not installed"):
        JtopSource()
    jtop(fails="The jtop.service is not active. Please run:\nsudo jtop --install-service")
    with pytest.raises(Unavailable, match=r"does not answer: The jtop.service is not active. Please run: sudo jtop"):
        JtopSource()
    with pytest.raises(Unavailable, match=r"for this machine only"):
        JtopSource(root=str(tmp_path))


def test_a_board_without_rails(jtop):
    jtop(power={"rail": {}, "tot": {"power": 0, "avg": 0}})
    with pytest.raises(Unavailable, match="the jtop service knows no power rails on this board"):
        JtopSource(interval_s=0.02)


@pytest.mark.parametrize(
    ("power_mw", "reason"), [(0, "the sensor reads 0: VDD_IN"), (5261, "the sensor does not move")]
)
def test_a_service_that_gives_0_or_one_value_for_ever_gives_no_energy(jtop, power_mw, reason, virtual_time):
    def start(client):
        client.thread = virtual_time.every(client.interval, lambda: [observer(client) for observer in client.observers])

    jtop(power={"rail": {}, "tot": {"power": power_mw, "name": "VDD_IN"}}, start=start)
    source = JtopSource(interval_s=0.02)
    fake_power.assert_no_energy(*fake_power.run_with(virtual_time, source, TABLES["orin-nano"]), reason)
