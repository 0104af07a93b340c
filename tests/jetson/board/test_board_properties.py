"""Texts of systems never seen: whatever a file holds, reading gives a value or None, and never raises."""

import pytest

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from edgeqlora_jetson.board.detect import load_boards
from edgeqlora_jetson.board.identity import Evidence, identify, parse_tnspec, tnspec_part_number
from edgeqlora_jetson.board.l4t import parse_package_version, parse_tegra_release
from edgeqlora_jetson.board.nvpmodel import parse_conf, parse_query, parse_status
from edgeqlora_jetson.sensors.gpu_memory import parse_nvmap
from edgeqlora_jetson.sensors.memory import parse_lfb, parse_meminfo, parse_swaps
from edgeqlora_jetson.sensors.thermal import parse_temperature

BOARDS = load_boards()
# Words of the real files, so that the texts come near them.
WORDS = st.sampled_from(
    [
        "R36",
        "(release),",
        "REVISION:",
        "4.3",
        "#",
        "<",
        ">",
        "POWER_MODEL",
        "ID=1",
        "NAME=15W",
        "PM_CONFIG",
        "DEFAULT=2",
        "GPU",
        "MAX_FREQ",
        "-1",
        "612000000",
        "TPC_POWER_GATING",
        "TPC_PG_MASK",
        "240",
        "CPU_ONLINE",
        "CORE_0",
        "NV",
        "Power",
        "Mode:",
        "pmode:0002",
        "TNSPEC",
        "3767-300-0005-S.1-1-1",
        "MemTotal:",
        "kB",
        "MemAvailable:",
        "7803072",
        "Node",
        "0,",
        "zone",
        "Normal",
        "Filename",
        "/dev/zram0",
        "partition",
        "total",
        "user",
        "12K",
    ]
)
TEXTS = st.one_of(st.text(), st.lists(st.one_of(WORDS, st.just("\n"), st.text(max_size=5))).map(" ".join))


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_parsers_never_raise(text):
    parsers = (parse_tegra_release, parse_package_version, parse_conf, parse_query, parse_status, parse_tnspec)
    for parse in parsers + (tnspec_part_number, parse_meminfo, parse_swaps, parse_lfb, parse_nvmap, parse_temperature):
        parse(text)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(TEXTS, st.sampled_from(["nvidia,tegra234", "nvidia,p3767-0005", "nvidia,jetson-nano"]))),
    st.none() | TEXTS,
    st.none() | TEXTS | st.sampled_from(["NVIDIA Orin NX Developer Kit", "NVIDIA Jetson Nano Developer Kit"]),
    st.none() | st.floats(0, 200000),
)
def test_a_board_is_one_of_the_table_or_none(compatible, tnspec, model, memory_mib):
    identity = identify(Evidence(compatible, tnspec, model, memory_mib), BOARDS)
    assert identity.id is None or identity.id in BOARDS
    assert identity.how


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(BOARDS) or ["none"]), st.lists(st.text(max_size=12), max_size=3), st.data())
def test_junk_beside_a_part_number_changes_nothing(name, junk, data):
    if not BOARDS:
        pytest.skip("no boards.json in this checkout")
    number = data.draw(st.sampled_from(BOARDS[name]["part_numbers"]))
    memory_mib = 0.93 * BOARDS[name]["memory_mib"]
    plain = identify(Evidence(["nvidia," + number], None, None, memory_mib), BOARDS)
    assert plain.id == name
    junk = [text for text in junk if "p" not in text]
    assert identify(Evidence(junk + ["nvidia," + number], None, None, memory_mib), BOARDS).id == name
