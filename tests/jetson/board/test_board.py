"""Which board a system is, from device trees, boot control files and memory sizes of published captures."""

import os
import shutil

import pytest
from fakes import boards as fake_boards

from edgeqlora_jetson.board.detect import detect_board, load_boards
from edgeqlora_jetson.board.identity import Evidence, identify, parse_tnspec, part_numbers, tnspec_part_number

BOARDS = {
    "cpu": {"title": "Any Linux machine", "part_numbers": []},
    "jetson-nano": {
        "title": "NVIDIA Jetson Nano 4GB",
        "soc": "tegra210",
        "memory_mib": 4096,
        "part_numbers": ["p3448-0000", "p3448-0002"],
        "compatible": ["nvidia,jetson-nano"],
        "models": ["NVIDIA Jetson Nano Developer Kit"],
    },
    "jetson-nano-2gb": {
        "soc": "tegra210",
        "memory_mib": 2048,
        "part_numbers": ["p3448-0003"],
        "compatible": ["nvidia,jetson-nano-2gb"],
        "models": ["NVIDIA Jetson Nano 2GB Developer Kit"],
    },
    "jetson-xavier-nx-8gb": {
        "soc": "tegra194",
        "memory_mib": 8192,
        "part_numbers": ["p3668-0000", "p3668-0001"],
        "models": ["NVIDIA Jetson Xavier NX Developer Kit"],
    },
    "jetson-xavier-nx-16gb": {
        "soc": "tegra194",
        "memory_mib": 16384,
        "part_numbers": ["p3668-0003"],
        "models": ["NVIDIA Jetson Xavier NX Developer Kit"],
    },
    "jetson-agx-xavier-32gb": {
        "soc": "tegra194",
        "memory_mib": 32768,
        "part_numbers": ["p2888-0001", "p2888-0004"],
    },
    "jetson-agx-xavier-64gb": {"soc": "tegra194", "memory_mib": 65536, "part_numbers": ["p2888-0005"]},
    "jetson-orin-nano-4gb": {
        "soc": "tegra234",
        "memory_mib": 4096,
        "part_numbers": ["p3767-0004"],
        "models": ["NVIDIA Jetson Orin Nano Engineering Reference Developer Kit"],
    },
    "jetson-orin-nano": {
        "title": "NVIDIA Jetson Orin Nano 8GB",
        "soc": "tegra234",
        "memory_mib": 8192,
        "part_numbers": ["p3767-0003", "p3767-0005"],
        "models": ["NVIDIA Jetson Orin Nano Engineering Reference Developer Kit"],
    },
    "jetson-orin-nx-8gb": {"soc": "tegra234", "memory_mib": 8192, "part_numbers": ["p3767-0001"]},
    "jetson-orin-nx-16gb": {"soc": "tegra234", "memory_mib": 16384, "part_numbers": ["p3767-0000"]},
    "jetson-agx-orin-32gb": {
        "soc": "tegra234",
        "memory_mib": 32768,
        "part_numbers": ["p3701-0004", "p3701-0000"],
        "models": ["NVIDIA Jetson AGX Orin Developer Kit"],
    },
    "jetson-agx-orin-64gb": {
        "soc": "tegra234",
        "memory_mib": 65536,
        "part_numbers": ["p3701-0005", "p3701-0000"],
        "models": ["NVIDIA Jetson AGX Orin Developer Kit"],
    },
    "jetson-thor-t5000": {
        "soc": "tegra264",
        "memory_mib": 131072,
        "part_numbers": ["p3834-0008"],
        "models": ["NVIDIA Jetson AGX Thor Developer Kit"],
    },
    "jetson-thor-t4000": {
        "soc": "tegra264",
        "memory_mib": 65536,
        "part_numbers": ["p3834-0000"],
        "models": ["NVIDIA Jetson AGX Thor Developer Kit"],
    },
}
# kind of tree: (board, how it is known, clocks locked, L4T, JetPack, power mode)
KNOWN = {
    "nano-r32": ("jetson-nano", "part number p3448-0000 in /proc/device-tree/compatible", False, "32.7.1", "4.6.1"),
    "nano-2gb-r32": ("jetson-nano-2gb", "part number p3448-0003 in", None, "32.6.1", "4.6"),
    "xavier-nx-r35": ("jetson-xavier-nx-8gb", "part number p3668-0000 in", False, "35.4.1", "5.1.2"),
    "xavier-nx-16gb-r35": (
        "jetson-xavier-nx-16gb",
        "part number p3668-0001 in /proc/device-tree/compatible, but 15,825 MiB of memory: a p3668 board",
        None,
        "35.6.4",
        "5.1.6",
    ),
    "orin-nano-r36": ("jetson-orin-nano", "part number p3767-0005 in", False, "36.4.3", "6.2"),
    "agx-orin-r36": ("jetson-agx-orin-32gb", "part number p3701-0000 in", False, "36.4.4", "6.2.1"),
    "thor-r38": ("jetson-thor-t5000", "part number p3834-0008 in", False, "38.4.0", "7.1"),
    "thor-r39": ("jetson-thor-t5000", "part number p3834-0008 in", True, "39.2.0", "7.2"),
    "third-party-orin-nx": (
        "jetson-orin-nx-16gb",
        "part number p3767-0000 in /etc/nv_boot_control.conf",
        True,
        "36.3.0",
        "6.0",
    ),
}
MODES = {
    "nano-r32": "MAXN",
    "nano-2gb-r32": "MAXN",
    "xavier-nx-r35": "MODE_15W_2CORE",
    "xavier-nx-16gb-r35": "MODE_15W_6CORE",
    "orin-nano-r36": "15W",
    "agx-orin-r36": "MODE_30W",
    "thor-r38": "120W",
    "thor-r39": "MAXN",
    "third-party-orin-nx": "25W",
}


def package_of_thor(argv):
    """dpkg-query of a board without /etc/nv_tegra_release; no nvpmodel."""
    if argv[0] == "dpkg-query":
        return 0, "39.2.0-20260630120000"
    return None, "No such file or directory"


@pytest.mark.parametrize("kind", sorted(KNOWN))
def test_every_board_is_known_with_its_system(tmp_path, kind):
    fake_boards.write_board_tree(tmp_path, kind)
    board = detect_board(str(tmp_path), BOARDS, package_of_thor)
    board_id, how, locked, l4t, jetpack = KNOWN[kind]
    assert board.id == board_id
    assert board.how.startswith(how)
    assert board.is_jetson
    assert (board.l4t, board.jetpack) == (l4t, jetpack)
    assert board.power_mode == MODES[kind]
    assert board.power_mode_how == "/var/lib/nvpmodel/status, named by /etc/nvpmodel.conf"
    assert board.clocks_locked is locked
    assert board.memory_total_mib == fake_boards.TREES[kind].memory_mib
    assert not board.in_container


@pytest.mark.parametrize("kind", sorted(KNOWN))
def test_the_table_that_ships_knows_every_board(tmp_path, kind):
    boards = load_boards()
    if not boards:
        pytest.skip("no boards.json in this checkout")
    fake_boards.write_board_tree(tmp_path, kind)
    board = detect_board(str(tmp_path), boards, package_of_thor)
    assert board.id == KNOWN[kind][0]
    assert board.id in boards
    assert board.title == boards[board.id]["title"]


def test_a_contradicted_part_number_is_noted(tmp_path):
    fake_boards.write_board_tree(tmp_path, "xavier-nx-16gb-r35")
    notes = detect_board(str(tmp_path), BOARDS).notes
    assert (
        "/proc/device-tree/compatible says p3668-0001, whose memory would be 8192 MiB: jetson-xavier-nx-16gb of the "
        "same module family has 15,825 MiB" in notes
    )


def test_in_a_container_the_model_and_the_memory_are_left(tmp_path):
    fake_boards.write_board_tree(tmp_path, "container")
    board = detect_board(str(tmp_path), BOARDS)
    assert board.id == "jetson-orin-nano"
    assert board.how == (
        'model "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", 7,620 MiB of memory'
    )
    assert board.in_container
    assert (board.l4t, board.power_mode) == (None, None)
    assert board.power_mode_how == "nvpmodel does not answer and there is no /var/lib/nvpmodel/status"
    assert any(note.startswith("in a container: nvpmodel, tegrastats") for note in board.notes)
    assert (
        "L4T and JetPack are not known: there is no /etc/nv_tegra_release and no package nvidia-l4t-core" in board.notes
    )


def test_a_workstation_is_no_jetson(tmp_path):
    fake_boards.write_board_tree(tmp_path, "workstation")
    board = detect_board(str(tmp_path), BOARDS)
    assert (board.id, board.is_jetson, board.power_mode) == (None, False, None)
    assert board.how == "no Tegra in /proc/device-tree/compatible"
    assert board.power_mode_how == "only a Jetson has nvpmodel"
    assert board.clocks_locked is False
    assert board.notes == []


def test_an_empty_root_is_not_known_and_no_error(tmp_path):
    board = detect_board(str(tmp_path), BOARDS)
    assert (board.id, board.is_jetson, board.memory_total_mib, board.clocks_locked) == (None, False, None, None)


def test_this_machine_can_be_read():
    board = detect_board()
    assert board.how
    assert board.is_root is (os.geteuid() == 0)


def test_locked_clocks_are_seen(tmp_path):
    fake_boards.write_board_tree(tmp_path, "orin-nano-r36")
    board = detect_board(str(tmp_path), BOARDS)
    assert board.clocks_how == "free to move: gpu 306 to 612 MHz, cpu0 729 to 1510 MHz, cpu4 729 to 1510 MHz"
    fake_boards.lock_clocks(tmp_path, "orin-nano-r36")
    board = detect_board(str(tmp_path), BOARDS)
    assert board.clocks_locked is True
    assert board.clocks_how == ("lowest and highest allowed clock are equal: gpu 612 MHz, cpu0 1510 MHz, cpu4 1510 MHz")


def test_a_gpu_whose_clock_is_hidden_is_never_locked(tmp_path):
    fake_boards.write_board_tree(tmp_path, "orin-nano-r36")
    fake_boards.lock_clocks(tmp_path, "orin-nano-r36")
    os.remove(str(tmp_path / "sys/class/devfreq/17000000.gpu/min_freq"))
    assert detect_board(str(tmp_path), BOARDS).clocks_locked is None
    shutil.rmtree(str(tmp_path / "sys/class/devfreq/17000000.gpu"))
    board = detect_board(str(tmp_path), BOARDS)
    assert board.clocks_locked is None
    assert board.clocks_how.endswith("not readable: the GPU's clock (/sys/class/devfreq)")


def test_nvpmodel_is_asked_first(tmp_path):
    fake_boards.write_board_tree(tmp_path, "orin-nano-r36")

    def run(argv):
        return (
            (0, "NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN_SUPER\n2\n") if argv[0] == "nvpmodel" else (1, "")
        )

    board = detect_board(str(tmp_path), BOARDS, run)
    assert (board.power_mode, board.power_mode_id, board.power_mode_how) == ("MAXN_SUPER", 2, "nvpmodel -q")


@pytest.mark.parametrize(
    ("is_root", "kind", "hidden"),
    [
        (False, "nano-r32", "not root: on L4T 32.7.1 tegrastats may hide power rails, memory clock and GPU clock"),
        (False, "xavier-nx-r35", "not root: on L4T 35.4.1 tegrastats may hide power rails"),
        (False, "orin-nano-r36", "not root: tegrastats hides the memory clock, the GPU's clock and the engines on L4T"),
        (
            False,
            "thor-r38",
            "not root: on a Thor tegrastats hides GPU load and clock, the memory clock and the engines",
        ),
        # The recorded R39.2 line of a user has no GR3D_FREQ at all; an Orin's of the same release has its load.
        (
            False,
            "thor-r39",
            "not root: on a Thor tegrastats hides GPU load and clock, the memory clock and the engines",
        ),
        (True, "nano-r32", None),
    ],
)
def test_what_root_would_show(tmp_path, monkeypatch, is_root, kind, hidden):
    monkeypatch.setattr(os, "geteuid", lambda: 0 if is_root else 1000)
    fake_boards.write_board_tree(tmp_path, kind)
    board = detect_board(str(tmp_path), BOARDS, package_of_thor)
    assert board.is_root is is_root
    if hidden is None:
        assert board.notes == []
    else:
        assert board.notes[0].startswith(hidden)
        assert board.notes[-1] == (
            "not root: NvMap's list of GPU memory is closed, so it is estimated from MemAvailable"
        )


def evidence(compatible=(), tnspec=None, model=None, memory_mib=None):
    return Evidence(list(compatible), tnspec, model, memory_mib)


@pytest.mark.parametrize(
    ("seen", "board_id", "how"),
    [
        # The developer kit's own number on every AGX Xavier: the memory tells.
        (evidence(["nvidia,p2822-0000+p2888-0001", "nvidia,tegra194"], memory_mib=31919), "jetson-agx-xavier-32gb", None),
        (evidence(["nvidia,p2822-0000+p2888-0001", "nvidia,tegra194"], memory_mib=63840), "jetson-agx-xavier-64gb", None),
        (
            evidence(["nvidia,p3737-0000+p3701-0000", "nvidia,tegra234"], memory_mib=62840),
            "jetson-agx-orin-64gb",
            "part number p3701-0000 in /proc/device-tree/compatible, 62,840 MiB of memory",
        ),
        # Galen says only this, without a number.
        (evidence(["nvidia,galen", "nvidia,tegra194"], "2888-400-0004-M.0-1-2-jetson-xavier-rqx580-"), "jetson-agx-xavier-32gb", None),
        # Older boot control files have the SKU before the version.
        (evidence(["nvidia,tegra210"], "3448-0002-300-A.0-1-0-jetson-nano-"), "jetson-nano", None),
        # Names where there are no numbers.
        (evidence(["nvidia,tegra264"], "jetson-agx-thor-t4000", memory_mib=62800), "jetson-thor-t4000", "TNSPEC in"),
        (evidence(["nvidia,jetson-nano", "nvidia,tegra210"], memory_mib=3964), "jetson-nano", "compatible string in"),
        # The model text says neither T4000 nor T5000.
        (evidence([], None, "NVIDIA Jetson AGX Thor Developer Kit", 62800), "jetson-thor-t4000", 'model "NVIDIA Jetson AGX'),
        (evidence(["nvidia,tegra264"], memory_mib=125772), "jetson-thor-t5000", "SoC tegra264 in"),
        # 8 GB of tegra234 is an Orin Nano or an Orin NX: the carrier's text tells, or nothing does.
        (evidence(["nvidia,tegra234"], None, "Forecr Orin NX board", 7337), "jetson-orin-nx-8gb", 'words of the model "Forecr Orin NX board"'),
        # The same in a container, which sees the model text alone.
        (evidence([], None, "NVIDIA Orin NX T801-16GB", 15650), "jetson-orin-nx-16gb", "words of the model"),
        (evidence(["nvidia,tegra234"], None, "Some box", 7337), None, "SoC tegra234 in /proc/device-tree/compatible, which several"),
    ],
)  # fmt: skip
def test_order_of_evidence(seen, board_id, how):
    identity = identify(seen, BOARDS)
    assert identity.id == board_id
    assert how is None or identity.how.startswith(how)


def test_what_cannot_be_told_apart_is_named():
    identity = identify(evidence(["nvidia,tegra234"], None, "Some box", 7337), BOARDS)
    assert identity.notes == [
        "SoC tegra234 in /proc/device-tree/compatible does not tell these boards apart: jetson-orin-nano, "
        "jetson-orin-nx-8gb"
    ]


def test_memory_that_fits_no_board_of_the_family_is_noted():
    identity = identify(evidence(["nvidia,p2822-0000+p2888-0001", "nvidia,tegra194"], memory_mib=15692), BOARDS)
    assert identity.id == "jetson-agx-xavier-32gb"
    assert identity.notes == ["memory 15,692 MiB does not fit jetson-agx-xavier-32gb (32768 MiB in the table)"]


def test_a_jetson_that_is_not_in_the_table():
    identity = identify(evidence(["nvidia,p9999-0000+p9998-0001", "nvidia,tegra999"]), BOARDS)
    assert identity.id is None
    assert identity.how == "this Jetson is not in the board table (14 boards): p9999-0000, p9998-0001"
    assert identity.notes == [
        "the rails of a board not in the table are not added up: energy takes one known input rail"
    ]


def test_another_makers_nano_is_no_jetson():
    for compatible, model in ((["friendlyarm,neo-nano", "rockchip,rk3328"], "FriendlyElec NEO nano"), ([], "Nano 4GB")):
        identity = identify(evidence(compatible, None, model, 3900), BOARDS)
        assert (identity.id, identity.how) == (None, "no Tegra in /proc/device-tree/compatible")


def test_part_numbers_in_texts():
    assert part_numbers(["nvidia,p3449-0000-b00+p3448-0000-b00", "nvidia,jetson-nano"]) == ["p3449-0000", "p3448-0000"]
    assert part_numbers(["nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005"]) == ["p3768-0000", "p3767-0005"]
    assert part_numbers(["p3310-1000 (module)", "900-13448-0020-000", "tegra194-p3668-0001.dts"]) == [
        "p3310-1000",
        "p3668-0001",
    ]


@pytest.mark.parametrize(
    ("tnspec", "number"),
    [
        ("3767-300-0005-S.1-1-1-jetson-orin-nano-devkit-super-", "p3767-0005"),
        ("3767-ES1-0000-A.3-1-0-jetson-orin-nx-xavier-nx-devkit-nvme0n1p1", "p3767-0000"),
        ("3701-500-0005-A.0-1-0-cti-orin-agx-agx201-00-", "p3701-0005"),
        ("3448-0002-300-A.0-1-0-jetson-nano-", "p3448-0002"),
        ("3448-300---1-0-jetson-nano-qspi-sd-mmcblk0p1", None),
        ("jetson-agx-thor-t4000", None),
        ("", None),
    ],
)
def test_part_number_of_a_tnspec(tnspec, number):
    assert tnspec_part_number(tnspec) == number


def test_tnspec_is_found_among_the_other_lines():
    text = "# comment\nCOMPATIBLE_SPEC 3767--0005--1--x\nTNSPEC 3767-300-0005-K.2-1-1-y-\nTEGRA_CHIPID 0x23\n"
    assert parse_tnspec(text) == "3767-300-0005-K.2-1-1-y-"
    assert parse_tnspec("") is None
