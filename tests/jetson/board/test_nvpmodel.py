"""L4T releases and power modes, from the files and outputs of published captures; setting a mode by its name."""

import os

import pytest
from fakes import boards as fake_boards

from edgeqlora_jetson.board.l4t import (
    jetpack_of,
    parse_package_version,
    parse_tegra_release,
    read_release,
    sister_release,
    version_key,
)
from edgeqlora_jetson.board.nvpmodel import (
    Conf,
    Mode,
    NvpMode,
    parse_conf,
    parse_query,
    parse_status,
    read_conf,
    read_mode,
    set_power_mode,
)
from edgeqlora_jetson.errors import UserError


@pytest.mark.parametrize(
    ("text", "l4t"),
    [
        (
            "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025",
            "36.4.3",
        ),
        ("# R32 (release), REVISION: 7.4, GCID: 33916208, BOARD: t210ref, EABI: aarch64", "32.7.4"),
        ("# R38 (release), REVISION: 4.0, GCID: 1\n# KERNEL_VARIANT: oot\n", "38.4.0"),
        ("# R39 (release), REVISION: 2, GCID: 1", "39.2.0"),
        ("", None),
        ("# Yocto image", None),
    ],
)
def test_l4t_of_the_release_file(text, l4t):
    assert parse_tegra_release(text) == l4t


def test_l4t_of_the_package():
    assert parse_package_version("36.4.3-20250107174145") == "36.4.3"
    assert parse_package_version("39.2-20260630") == "39.2.0"
    assert parse_package_version("dpkg-query: no packages found") is None


JETPACKS = [
    {"jetpack": "5.1.6", "l4t": "35.6.4", "tensorrt": "8.5.2"},
    {"jetpack": "6.0", "l4t": "36.3", "tensorrt": "8.6.2.3"},
    {"jetpack": "6.2.2", "l4t": "36.5.0", "tensorrt": "10.3.0.30"},
]


@pytest.mark.parametrize(
    ("l4t", "tensorrt", "jetpack"),
    [
        ("35.4.1", None, "5.1.6"),  # older than every one of the series
        ("36.4.3", None, "6.0"),  # the nearest that is not newer
        ("36.4.3", "10.3.0", "6.2.2"),  # its own TensorRT goes before
        ("36.4.3", "10.7.0", "6.0"),  # a TensorRT of nobody's
        (None, "8.6.2", "6.0"),  # in a container
        ("32.7.1", "8.2.1", None),
        (None, None, None),
    ],
)
def test_the_release_of_the_table_that_stands_for_an_installed_one(l4t, tensorrt, jetpack):
    release = sister_release(JETPACKS, l4t, tensorrt)
    assert (release and release["jetpack"]) == jetpack


def test_jetpack_of_a_release():
    assert jetpack_of("36.5") == jetpack_of("36.5.0") == "6.2.2"
    assert jetpack_of("32.7.6") == "4.6.6"
    assert jetpack_of("39.2.1") == "7.2.1"
    # Two sources disagree on it, so none is believed.
    assert jetpack_of("39.1.0") is None
    assert jetpack_of("40.1.0", {"b": {"jetpacks": [{"l4t": "40.1", "jetpack": "8.0"}]}}) == "8.0"


def test_the_shipped_boards_releases_agree_with_the_table():
    from edgeqlora_jetson.board.detect import load_boards

    for name, board in load_boards().items():
        for release in board.get("jetpacks") or []:
            if release.get("l4t"):
                assert jetpack_of(release["l4t"]) == release["jetpack"], name


def test_a_missing_release_says_why(tmp_path):
    release = read_release(str(tmp_path))
    assert (release.l4t, release.jetpack) == (None, None)
    assert release.how == "there is no /etc/nv_tegra_release and no package nvidia-l4t-core"
    fake_boards.write(tmp_path, "etc/nv_tegra_release", "nothing\n")
    assert read_release(str(tmp_path)).how.startswith("/etc/nv_tegra_release names no release")


def test_versions_compare_as_numbers():
    assert version_key("36.10.1") > version_key("36.4.7")


def test_modes_of_a_conf_file(tmp_path):
    fake_boards.write_board_tree(tmp_path, "orin-nano-r36")
    assert read_conf(str(tmp_path)) == Conf(
        [
            NvpMode(0, "15W", 612, 240, 6),
            NvpMode(1, "25W", 918, 240, 6),
            NvpMode(2, "MAXN_SUPER", None, 240, 6),
            NvpMode(3, "7W", 408, 252, 4),
        ],
        default_id=1,
    )


def test_a_conf_file_with_other_blocks_and_spacing():
    text = (
        "< CLOCK TYPE=X >\nMAX_FREQ /sys/kernel/x\n"
        "<POWER_MODEL NAME=MODE_30W ID=2>   # thirty\n"
        "TPC_POWER_GATING TPC_PG_MASK 240\nGPU MAX_FREQ 612000000\nCPU_ONLINE CORE_0 1\nCPU_ONLINE CORE_1 0\n"
        "< FAN_CONFIG DEFAULT=cool >\nGPU MAX_FREQ 1\n"
        "< POWER_MODEL ID=x NAME=BROKEN >\nGPU MAX_FREQ 2\n"
    )
    assert parse_conf(text) == Conf([NvpMode(2, "MODE_30W", 612, 240, 1)], None)
    assert parse_conf("") == Conf([], None)


def test_what_nvpmodel_answers():
    assert parse_query("NV Power Mode: 25W\n1\n") == Mode("25W", 1, "nvpmodel -q")
    verbose = (
        "NVPM VERB: Config file: /etc/nvpmodel.conf\nNVPM VERB: parsing done for /etc/nvpmodel.conf\n"
        "NVPM VERB: Current mode: NV Power Mode: 25W\n1\nNVPM VERB: PARAM CPU_ONLINE: ARG CORE_0: REAL_VAL: 1\n"
    )
    assert parse_query(verbose) == Mode("25W", 1, "nvpmodel -q")
    assert parse_query("NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n").id == 2
    assert parse_query("NVPM ERROR: Error opening /var/lib/nvpmodel/status: 13\n") is None


def test_the_status_file():
    assert parse_status("pmode:0002 fmode:quiet") == 2
    assert parse_status("") is None


def test_a_mode_that_the_conf_file_does_not_name(tmp_path):
    fake_boards.write(tmp_path, "var/lib/nvpmodel/status", "pmode:0007 fmode:quiet\n")
    mode = read_mode(str(tmp_path))
    assert mode == Mode(None, 7, "/var/lib/nvpmodel/status says mode 7, which /etc/nvpmodel.conf does not name")


class FakeNvpmodel(object):
    """nvpmodel of an Orin Nano Super: mode 3 switches cores off and so takes a reboot, as on the board."""

    def __init__(self, root, works=True):
        self.root, self.works, self.calls = root, works, []

    def __call__(self, argv):
        self.calls.append(list(argv))
        if argv == ["nvpmodel", "-q"]:
            mode = read_mode(str(self.root), lambda argv: (None, ""))
            return 0, "NV Power Mode: {}\n{}\n".format(mode.name, mode.id)
        assert argv[:2] == ["nvpmodel", "-m"]
        if argv[2] == "3":
            return 255, (
                "NVPM WARN: Reboot required for changing to this power mode: 3\n"
                "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:\nNVPM ERROR: bad input!\n"
            )
        if self.works:
            fake_boards.write(self.root, "var/lib/nvpmodel/status", "pmode:000{} fmode:quiet\n".format(argv[2]))
            return 0, ""
        return 255, "NVPM ERROR: Error writing 1020000000 to /sys/class/devfreq/x/max_freq: 5\n"


@pytest.fixture
def board(tmp_path, monkeypatch):
    fake_boards.write_board_tree(tmp_path, "orin-nano-r36")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path


def test_a_mode_is_set_by_name(board):
    nvpmodel = FakeNvpmodel(board)
    assert set_power_mode("MAXN_SUPER", str(board), nvpmodel) == Mode("MAXN_SUPER", 2, "nvpmodel -q")
    assert ["nvpmodel", "-m", "2"] in nvpmodel.calls


def test_the_mode_in_force_is_not_set_again(board):
    nvpmodel = FakeNvpmodel(board)
    assert set_power_mode("15W", str(board), nvpmodel).id == 0
    assert not any("-m" in call for call in nvpmodel.calls)


@pytest.mark.parametrize(
    ("name", "works", "is_root", "text"),
    [
        ("MAXN", True, True, "there is no power mode MAXN on this board: it has 15W, 25W, 7W, MAXN_SUPER"),
        ("0", True, True, "there is no power mode 0 on this board: it has 15W, 25W, 7W, MAXN_SUPER"),
        ("25W", True, False, "power mode 25W: setting it needs root. Run: sudo nvpmodel -m 1"),
        (
            "7W",
            True,
            True,
            "power mode 7W takes a reboot on this board, as it switches cores on or off. "
            "Run: sudo nvpmodel -m 3, answer yes, and measure again after the reboot",
        ),
        (
            "25W",
            False,
            True,
            "power mode 25W was not taken: the board is in 15W; nvpmodel said: NVPM ERROR: Error writing 1020000000 "
            "to /sys/class/devfreq/x/max_freq: 5. Run by hand: sudo nvpmodel -m 1",
        ),
    ],
)
def test_refusals_say_what_to_do(board, monkeypatch, name, works, is_root, text):
    monkeypatch.setattr(os, "geteuid", lambda: 0 if is_root else 1000)
    with pytest.raises(UserError) as error:
        set_power_mode(name, str(board), FakeNvpmodel(board, works))
    assert str(error.value) == text


def test_no_modes_without_a_conf_file(tmp_path):
    with pytest.raises(UserError) as error:
        set_power_mode("MAXN", str(tmp_path))
    assert str(error.value) == ("power mode MAXN: this system has no /etc/nvpmodel.conf, so its modes are not known")
