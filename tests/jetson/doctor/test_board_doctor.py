"""The doctor: every finding with its values, what it means and what corrects it, on written trees of whole boards."""

import os
import sys
import types

import pytest
from fakes import boards as fake_boards
from fakes import power as fake_power

from edgeqlora_jetson.board.detect import Board, detect_board, load_boards
from edgeqlora_jetson.board.nvpmodel import NvpMode
from edgeqlora_jetson.doctor.board import examine_board, fastest_mode
from edgeqlora_jetson.doctor.findings import Finding, note, ok, problem, warning
from edgeqlora_jetson.doctor.onnx_probe import Probe, probe_providers, tiny_model
from edgeqlora_jetson.doctor.run import examine, format_findings
from edgeqlora_jetson.doctor.software import (
    NOT_INSTALLED,
    Software,
    examine_onnxruntime,
    examine_python,
    examine_tensorrt,
    read_software,
)
from edgeqlora_jetson.doctor.system import empty_swap_command, examine_disk, examine_heat, examine_memory, examine_swap
from edgeqlora_jetson.sensors.memory import Swap

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
SOFTWARE = Software(
    "3.10.12", "1.26.4", "1.23.0", None, [Probe(CUDA, True, None), Probe(CPU, True, None)], "10.3.0", None
)


@pytest.fixture(autouse=True)
def as_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def nothing(argv):
    """No program answers."""
    return None, ""


def look(root, kind=None, bundle=None, software=SOFTWARE):
    if kind is not None:
        fake_boards.write_board_tree(root, kind)
    return examine(bundle, str(root), nothing, software)


def find(findings, text):
    """The one finding whose `what` holds a text."""
    found = [finding for finding in findings if text in finding.what]
    assert len(found) == 1, (text, [finding.what for finding in findings])
    return found[0]


def bundle_for(folder, **profile):
    return types.SimpleNamespace(folder=str(folder), manifest={"profile": profile})


@pytest.mark.parametrize("kind", sorted(set(fake_boards.TREES) - {"workstation", "container"}))
def test_every_board_is_recognised_and_measured(tmp_path, kind):
    findings = look(tmp_path, kind)
    board = detect_board(str(tmp_path), run=nothing)
    assert findings[0].level == "ok"
    assert findings[0].what.startswith(load_boards()[board.id]["title"])
    assert not any(finding.level == "problem" for finding in findings)
    assert find(findings, "Power from ").level == "ok"


def test_a_super_orin_nano_in_its_slow_mode(tmp_path):
    findings = look(tmp_path, "orin-nano-r36")
    mode = find(findings, "Power mode 15W")
    assert mode.level == "note"
    assert mode.what == (
        "Power mode 15W (number 0 here, by /var/lib/nvpmodel/status, named by /etc/nvpmodel.conf): GPU up to 612 MHz, "
        "6 processor cores"
    )
    assert "MAXN_SUPER" in mode.means
    # By name: on this board the fastest mode is number 2, and number 0 is the 15 W one.
    assert mode.command == "sudo nvpmodel -m 2   # MAXN_SUPER, on this board"
    clocks = find(findings, "Clocks are free to move")
    assert (clocks.level, clocks.command) == (
        "warning",
        "sudo jetson_clocks --store && sudo jetson_clocks   # undo: sudo jetson_clocks --restore",
    )
    assert find(findings, "L4T 36.4.3, JetPack 6.2").level == "ok"
    heat = find(findings, "Throttled since boot")
    assert heat.what == "Throttled since boot: oc2_event_cnt 15, oc3_event_cnt 37"
    assert find(findings, "All swap is zram").level == "note"


def test_the_fastest_mode_with_locked_clocks_is_fine(tmp_path):
    findings = look(tmp_path, "thor-r39")
    assert find(findings, "Power mode MAXN").level == "ok"
    assert find(findings, "Clocks locked").level == "ok"
    power = find(findings, "Power from ")
    assert power.what == "Power from ina: VIN (system_input)"
    assert "carrier included" in power.means
    still = find(findings, "Power sensor ina: the sensor does not move")  # the made-up tree stands still
    assert still.level == "warning"


def test_a_mode_that_switches_gpu_cores_off(tmp_path):
    fake_boards.write_board_tree(tmp_path, "third-party-orin-nx")
    fake_boards.write(tmp_path, "var/lib/nvpmodel/status", "pmode:0002 fmode:quiet\n")
    finding = find(look(tmp_path), "switches off")
    # 15W has mask 252 (6 bits), MAXN and 25W have 240 (4 bits, TPCs this module does not have).
    assert finding.what == (
        "Mode 15W switches off 2 groups of GPU cores that other modes of this board leave on (TPC mask 252)"
    )
    assert finding.level == "warning"
    assert "rebuilt" in finding.means


def test_an_image_without_the_super_modes(tmp_path):
    assert find(look(tmp_path, "third-party-orin-nx"), "without the Super modes").what == (
        "This image is without the Super modes of this module (MAXN_SUPER, 40W)"
    )
    assert not any("Super modes" in finding.what for finding in look(tmp_path / "super", "orin-nano-r36"))


def test_without_a_mode_called_maxn_the_widest_and_fastest_wins():
    def mode(name, gpu_max_mhz, mask):
        return NvpMode(0, name, gpu_max_mhz, mask, None)

    # On Orin NX 25W has twice the cores of 15W at two thirds of the clock.
    assert fastest_mode([mode("15W", 612, 252), mode("25W", 408, 240)]).name == "25W"
    assert fastest_mode([mode("MODE_15W_6CORE", 1109, 1), mode("MODE_10W_4CORE", 803, 1)]).name == "MODE_15W_6CORE"
    assert fastest_mode([mode("A", None, None)]) is None
    assert fastest_mode([]) is None


def test_the_fastest_mode_of_nine(tmp_path):
    # The same GPU clock and cores: the cap is a ceiling, and 20 W reaches it where 15 W does not.
    fake_boards.write_board_tree(tmp_path, "xavier-nx-r35")
    mode = find(look(tmp_path), "Power mode MODE_15W_2CORE")
    assert mode.command == "sudo nvpmodel -m 8   # MODE_20W_6CORE, on this board"
    fake_boards.write(tmp_path, "var/lib/nvpmodel/status", "pmode:0008 fmode:quiet\n")
    assert find(look(tmp_path), "Power mode MODE_20W_6CORE").level == "ok"


def test_watts_that_a_name_does_not_say_come_from_the_table():
    modes = [NvpMode(0, "FAST", 1000, 0, 4), NvpMode(1, "SLOW", 1000, 0, 8)]
    facts = {"power_modes": [{"name": "FAST", "watt_cap": 30}, {"name": "SLOW", "watt_cap": 10.0}]}
    assert fastest_mode(modes, facts).name == "FAST"
    assert fastest_mode(modes).name == "SLOW"


def test_in_a_container(tmp_path):
    findings = look(tmp_path, "container")
    container = find(findings, "In a container")
    assert container.level == "warning"
    assert "-v /usr/bin/tegrastats:/usr/bin/tegrastats" in container.command
    mode = find(findings, "Power mode not known")
    assert (mode.level, mode.command.split()[0]) == ("warning", "docker")
    assert find(findings, "L4T and JetPack are not known").level == "note"


def test_without_root(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    finding = find(look(tmp_path, "thor-r38"), "Not root")
    assert finding.level == "note"
    assert finding.what == (
        "Not root: on a Thor tegrastats hides GPU load and clock, the memory clock and the engines; power rails stay "
        "visible; NvMap's list of GPU memory is closed, so it is estimated from MemAvailable"
    )
    assert finding.command.startswith("sudo -E python3")


def test_an_unknown_jetson_with_one_input_rail_is_measured(tmp_path):
    fake_power.write_power_tree(str(tmp_path), "orin-nano-r36")
    fake_boards.write(tmp_path, "proc/device-tree/compatible", "nvidia,p9999-0000+p9998-0001\0nvidia,tegra264\0")
    fake_boards.write(tmp_path, "proc/meminfo", "MemTotal: 1048576 kB\nMemAvailable: 900000 kB\n")
    findings = look(tmp_path)
    assert findings[0].level == "warning"
    assert findings[0].what.startswith("Jetson not recognised: this Jetson is not in the board table")
    assert "only if it has one known input rail; see Power below. Everything else works" in findings[0].means
    # From a board with the same chip.
    assert findings[0].command == ("edgeqlora profiles show jetson-thor-t4000 --toml --name my-board > my-board.toml")
    # What the lines below say is no contradiction.
    assert find(findings, "Power from ").what == "Power from ina: VDD_IN (module_input)"
    assert not any("no energy" in finding.what + finding.means for finding in findings)


def test_a_profile_of_ones_own_for_an_unknown_board(tmp_path):
    fake_boards.write(tmp_path, "proc/device-tree/compatible", "nvidia,p9998-0001\0nvidia,tegra999\0")
    bundle = bundle_for(tmp_path, name="my-board", part_numbers=["p9998-0001"], rails=["VDD_IN"], total_rail="VDD_IN")
    assert find(look(tmp_path, bundle=bundle), "The bundle's profile is my-board").level == "ok"


@pytest.mark.parametrize(
    ("how", "key", "is_said"),
    [
        ('model "x", 7,620 MiB of memory', "models", True),
        ('words of the model "x"', "models", True),
        ("part number p3448-0000 in x", "models", False),
        ("compatible string in x", "compatible.nvidia,quill", True),
        ("part number p3448-0000 in x", "part_numbers", True),
        ("compatible string in x", "part_numbers", False),
        ("compatible string in x", "memory_bandwidth_gbs", False),
        ("part number p3448-0000 in x", "total_rail", True),
    ],
)
def test_an_unsourced_fact_is_said_where_it_decided(tmp_path, how, key, is_said):
    fake_boards.write_board_tree(tmp_path, "nano-r32")
    board = detect_board(str(tmp_path), run=nothing)._replace(how=how)
    findings = examine_board(board, {board.id: {"unsourced": [key]}})
    assert [f.what for f in findings[1:]] == [
        "No public document confirms these facts of the board table: " + key
    ] * is_said


def test_a_workstation_is_told_what_helps_it_and_no_more(tmp_path):
    fake_boards.write_board_tree(tmp_path, "workstation")
    software = SOFTWARE._replace(tensorrt=None, tensorrt_error="not installed")
    findings = look(tmp_path, software=software)
    assert findings[0].what.startswith("This is no Jetson")
    assert not any("nvpmodel" in (finding.command or "") for finding in findings)
    assert not any("TensorRT" in finding.what for finding in findings)
    # A machine that shows neither clocks nor heat nor power, and has no swap, as a virtual one.
    bare = tmp_path / "bare"
    fake_boards.write_memory(bare, 64215, 60000)
    findings = look(bare, software=software)
    assert [finding.what.split(":")[0].split(" (")[0] for finding in findings] == [
        "This is no Jetson",
        "No power source",
        "60,000 of 64,215 MiB of memory available",
        "Python 3.10.12",
        "numpy 1.26.4",
        "onnxruntime 1.23.0, run and checked",
        findings[-1].what.split(" (")[0],
    ]
    assert {finding.level for finding in findings} <= {"ok", "note"}
    assert "nvml+rapl" not in find(findings, "No power source").what
    broken = software._replace(tensorrt_error="does not import: OSError: libnvinfer.so.8")
    assert find(look(bare, software=broken), "TensorRT: does not import").level == "note"


@pytest.mark.parametrize(
    ("kind", "profile", "level", "what", "command"),
    [
        ("orin-nano-r36", {"name": "jetson-orin-nano", "part_numbers": ["p3767-0005"]}, "ok", "made for this board", None),
        (
            "orin-nano-r36",
            {"name": "jetson-nano", "title": "NVIDIA Jetson Nano 4GB", "part_numbers": ["p3448-0000"]},
            "warning",
            "The bundle was made for NVIDIA Jetson Nano 4GB, this is",
            "edgeqlora export MERGED --target jetson-orin-nano --output BUNDLE --jetpack 6.2.2",
        ),
        (
            "orin-nano-r36",
            {"name": "cpu"},
            "note",
            "The bundle's profile is cpu, not this board's",
            "edgeqlora export MERGED --target jetson-orin-nano --output BUNDLE --jetpack 6.2.2",
        ),
        (
            "xavier-nx-r35",
            {"name": "jetson-xavier-nx-8gb", "part_numbers": ["p3668-0000"], "tensorrt": "10.16"},
            "warning",
            "The bundle was checked for TensorRT 10.16, this board has 10.3.0",
            "edgeqlora export MERGED --target jetson-xavier-nx-8gb --output BUNDLE --jetpack 5.1.6",
        ),
        ("workstation", {"name": "cpu"}, "ok", "The bundle's profile is cpu", None),
        (
            "workstation",
            {"name": "jetson-nano", "title": "NVIDIA Jetson Nano 4GB", "part_numbers": ["p3448-0000"]},
            "note",
            "The bundle was made for NVIDIA Jetson Nano 4GB",
            None,
        ),
    ],
)  # fmt: skip
def test_whether_a_bundle_fits(tmp_path, kind, profile, level, what, command):
    finding = find(look(tmp_path, kind, bundle_for(tmp_path, **profile)), what)
    assert (finding.level, finding.command) == (level, command)


def test_memory_against_the_profiles_budget(tmp_path):
    profile = {"name": "jetson-orin-nano", "part_numbers": ["p3767-0005"], "memory_budget_mib": 6500}
    findings = look(tmp_path, "orin-nano-r36", bundle_for(tmp_path, **profile))
    finding = find(findings, "MiB of memory available")
    assert finding.level == "warning"
    assert finding.what == "6,420 of 7,620 MiB of memory available, the profile counts on 6,500 MiB"
    assert finding.command.startswith("sudo systemctl isolate multi-user.target")


def test_memory_in_pieces(tmp_path):
    fake_boards.write_memory(tmp_path, 7620, 5000)
    assert [finding.level for finding in examine_memory(str(tmp_path))] == ["ok", "ok"]
    fake_boards.write(tmp_path, "proc/buddyinfo", "Node 0, zone   Normal  5 4 3 2 1 0 0 1 0 0 0\n")
    lfb = examine_memory(str(tmp_path))[1]
    page_kib = os.sysconf("SC_PAGE_SIZE") // 1024
    assert lfb.what == "Largest free blocks of memory: 1 of {} KiB (lfb)".format(128 * page_kib)
    assert lfb.level == "warning"
    assert "NvMapMemAlloc error 12" in lfb.means


def small_board(**changes):
    board = Board(
        id="jetson-orin-nano", title="", how="", is_jetson=True, part_number=None, model=None, compatible=[],
        memory_total_mib=7620.0, l4t="36.4.3", jetpack="6.2", power_mode=None, power_mode_id=None, power_mode_how="",
        clocks_locked=None, clocks_how="", is_root=True, in_container=False, notes=[],
    )  # fmt: skip
    return board._replace(**changes)


def test_swap_in_use_is_emptied_by_name_and_priority(tmp_path):
    root = str(tmp_path)
    fake_boards.write_memory(root, 7620, 5000, (("/dev/zram0", 635, 400), ("/swapfile", 4096, 0)))
    finding = examine_swap(root, small_board())[0]
    assert finding.level == "warning"
    assert finding.what == ("Swap: 400 of 4,731 MiB in use, in 2 areas (1 zram, which is memory itself, compressed)")
    # `swapon -a` would bring back neither of them.
    assert finding.command == (
        "sudo swapoff /dev/zram0 && sudo swapon -p 5 /dev/zram0   # empties it; needs that much free memory"
    )
    fake_boards.write_memory(root, 7620, 5000, (("/swapfile", 4096, 0),))
    assert examine_swap(root, small_board()) == [ok("Swap: 0 of 4,096 MiB in use, in 1 area")]


def test_several_areas_come_back_in_their_order():
    swaps = [
        Swap("/swapfile", 4096, 9, None),
        Swap("/dev/zram0", 635, 9, 5),
        Swap("/dev/zram1", 635, 9, 5),
        Swap("/dev/zram2", 635, 0, 5),
        Swap("/mnt/a disk/swap", 635, 9, 10),
    ]
    assert empty_swap_command(swaps) == (
        "sudo swapoff /swapfile /dev/zram0 /dev/zram1 '/mnt/a disk/swap' && sudo swapon -p 10 '/mnt/a disk/swap' && "
        "sudo swapon -p 5 /dev/zram0 /dev/zram1 && sudo swapon /swapfile"
    )


def test_no_swap_matters_on_a_small_board_only(tmp_path, monkeypatch):
    root = str(tmp_path)
    fake_boards.write_memory(root, 7620, 5000)
    for free_mib, command in ((20000, "sudo fallocate -l 8G"), (9000, "sudo fallocate -l 4G"), (5000, None)):
        disk = types.SimpleNamespace(f_bavail=free_mib, f_frsize=2**20)
        monkeypatch.setattr(os, "statvfs", {os.path.join(root, ""): disk}.__getitem__)
        finding = examine_swap(root, small_board())[0]
        assert (finding.level, finding.what) == ("note", "No swap")
        assert finding.command is None if command is None else finding.command.startswith(command)
    assert finding.means.endswith("The disk has no room for a swap file (5,000 MiB free).")
    assert examine_swap(root, small_board(memory_total_mib=15656.0))[0].level == "ok"
    assert examine_swap(root, small_board(in_container=True))[0].level == "ok"
    assert examine_swap(root, small_board(is_jetson=False)) == []


def test_a_warm_start(tmp_path):
    fake_boards.write_board_tree(tmp_path, "thor-r38")
    assert examine_heat(str(tmp_path))[0] == ok("Warmest zone tj-thermal at 38.9 degC, 4 zones readable")
    fake_boards.write(tmp_path, fake_boards.zone_path("thor-r38", "cpu-thermal"), "81500\n")
    finding = examine_heat(str(tmp_path))[0]
    assert (finding.level, finding.what) == ("warning", "Warmest zone cpu-thermal at 81.5 degC, 4 zones readable")
    assert examine_heat(str(tmp_path / "none"))[0].what == "No temperature can be read"


def test_disk(tmp_path, monkeypatch):
    def statvfs(free_mib):
        return lambda folder: types.SimpleNamespace(f_bavail=free_mib, f_frsize=2**20)

    for free_mib, level in ((100, "problem"), (1000, "warning"), (9000, "ok")):
        monkeypatch.setattr(os, "statvfs", statvfs(free_mib))
        finding = examine_disk(str(tmp_path))[0]
        assert finding.level == level
        assert finding.what.startswith("{:,} MiB free on the disk of {}".format(free_mib, tmp_path))
    monkeypatch.undo()
    assert examine_disk(str(tmp_path / "gone"))[0].level == "problem"


def test_python_of_the_jetpack():
    software = SOFTWARE._replace(tensorrt=None, tensorrt_error="not installed")
    finding = examine_python(software, {"python": "3.8"})[1]
    assert (finding.level, finding.what) == ("warning", "JetPack's Python is 3.8, this is 3.10.12")
    assert finding.command == "/usr/bin/python3 edgeqlora-jetson.pyz doctor"
    assert [f.level for f in examine_python(software, {"python": "3.10"})] == ["ok", "ok"]
    # A release that the table does not know, and a tensorrt that imports in this Python.
    assert [f.level for f in examine_python(software, None)] == ["ok", "ok"]
    assert [f.level for f in examine_python(SOFTWARE, {"python": "3.8"})] == ["ok", "ok"]
    assert examine_python(SOFTWARE._replace(numpy=None))[1].level == "problem"


def test_python_is_compared_with_the_release_that_is_installed(tmp_path):
    # JetPack 5 on an Orin whose bundle was made for JetPack 6: 3.8 is right there, 3.10 is not.
    fake_boards.write_board_tree(tmp_path, "orin-nano-r36")
    fake_boards.write(tmp_path, "etc/nv_tegra_release", "# R35 (release), REVISION: 4.1, GCID: 1\n")
    profile = {"name": "jetson-orin-nano", "part_numbers": ["p3767-0005"], "tensorrt": "10.3", "python": "3.10"}
    bundle = bundle_for(tmp_path, **profile)
    without = SOFTWARE._replace(tensorrt=None, tensorrt_error="not installed")
    findings = look(tmp_path, bundle=bundle, software=without._replace(python="3.8.10"))
    assert not any("JetPack's Python" in finding.what for finding in findings)
    assert "its own Python only (3.8)" in find(findings, "TensorRT: not installed").means
    findings = look(tmp_path, bundle=bundle, software=without)
    assert find(findings, "JetPack's Python").what == "JetPack's Python is 3.8, this is 3.10.12"


def test_a_provider_that_is_listed_but_does_not_run():
    software = SOFTWARE._replace(probes=[Probe(CUDA, False, "listed, but not loaded"), Probe(CPU, True, None)])
    findings = examine_onnxruntime(software, True, "pip install x")
    assert findings[0] == ok("onnxruntime 1.23.0, run and checked: CPUExecutionProvider")
    assert findings[1].level == "warning"
    assert findings[1].what == "CUDAExecutionProvider: listed, but not loaded"
    assert findings[2].what == "onnxruntime has no provider for the GPU here"


def test_onnxruntime_that_is_missing_or_broken():
    software = SOFTWARE._replace(onnxruntime=None, onnxruntime_error="not installed", probes=[])
    finding = examine_onnxruntime(software, True, "pip install x")[0]
    assert (finding.level, finding.what, finding.command) == ("problem", "onnxruntime: not installed", "pip install x")
    broken = SOFTWARE._replace(probes=[Probe(CPU, False, "21 + 21 gave 0.0")])
    assert examine_onnxruntime(broken, False, "pip install x")[0].level == "problem"


def test_tensorrt():
    assert examine_tensorrt(SOFTWARE, True) == [ok("TensorRT 10.3.0")]
    assert "fp16 needs a graph" in examine_tensorrt(SOFTWARE._replace(tensorrt="11.4.1"), True)[1].means
    missing = SOFTWARE._replace(tensorrt=None, tensorrt_error="not installed")
    finding = examine_tensorrt(missing, True, {"python": "3.10"})[0]
    assert (finding.level, finding.command) == ("warning", "sudo apt-get install python3-libnvinfer")
    assert "its own Python only (3.10)" in finding.means


def test_the_software_of_this_machine_is_really_tried():
    pytest.importorskip("onnxruntime")
    software = read_software()
    assert Probe(CPU, True, None) in software.probes
    assert software.numpy is not None


def test_type_stubs_alone_are_no_tensorrt(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    software = read_software()
    assert (software.tensorrt, software.tensorrt_error) == (None, NOT_INSTALLED)


def test_a_broken_module_is_a_reason_not_a_crash(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.8: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    software = read_software()
    assert software.tensorrt is None
    assert software.tensorrt_error == ("does not import: OSError: libnvinfer.so.8: cannot open shared object file")


def test_the_tiny_model_is_a_valid_model():
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(onnx.load_from_string(tiny_model()), full_check=True)


class FakeOnnxruntime(object):
    """onnxruntime built for CUDA on a machine without it: lists the provider, then falls back in silence."""

    def __init__(self, active, result=42.0, error=None):
        self.active, self.result, self.error, self.entries = active, result, error, []

    def get_available_providers(self):
        return ["CUDAExecutionProvider", "AzureExecutionProvider"]

    def SessionOptions(self):
        return types.SimpleNamespace(add_session_config_entry=lambda *entry: self.entries.append(entry))

    def InferenceSession(self, model, options, providers):
        if self.error is not None:
            raise self.error
        return types.SimpleNamespace(
            get_providers=lambda: self.active, run=lambda outputs, inputs: [inputs["x"] * 0 + self.result]
        )


def test_probes_see_through_a_silent_fallback():
    fake = FakeOnnxruntime([CPU])
    assert probe_providers(fake) == [
        Probe(CUDA, False, "listed, but not loaded: a library is missing or of another version; the CPU ran instead")
    ]
    assert fake.entries == [("session.disable_cpu_ep_fallback", "1")]
    assert probe_providers(FakeOnnxruntime([CUDA, CPU])) == [Probe(CUDA, True, None)]
    assert probe_providers(FakeOnnxruntime([CUDA], result=41.0)) == [Probe(CUDA, False, "21 + 21 gave 41.0")]
    error = RuntimeError("libcublas.so.12: cannot open shared object file\nmore")
    assert probe_providers(FakeOnnxruntime([], error=error)) == [
        Probe(CUDA, False, "libcublas.so.12: cannot open shared object file")
    ]


def test_the_text():
    findings = [
        ok("All of 3 things are well"),
        note("Something", "It is like that."),
        warning("Clocks are free", "Latency " + "wanders " * 20, "sudo jetson_clocks"),
        problem("Disk full", "Nothing fits."),
        problem("No numpy", "Nothing runs.", "sudo apt-get install python3-numpy"),
    ]
    text = format_findings(findings, width=60)
    assert text.splitlines()[:4] == [
        "[ok]      All of 3 things are well",
        "[note]    Something",
        "          It is like that.",
        "[warning] Clocks are free",
    ]
    assert "          -> sudo jetson_clocks\n" in text
    assert all(len(line) <= 60 for line in text.splitlines())
    assert text.endswith("\n\n2 problems, 1 warning.")
    assert format_findings([ok("x")]).endswith("Nothing stands in the way.")


def test_levels_are_the_four():
    assert [finding("a", "b").level for finding in (note, warning, problem)] == ["note", "warning", "problem"]
    assert Finding("ok", "a", "", None) == ok("a")
