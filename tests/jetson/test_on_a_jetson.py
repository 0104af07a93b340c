"""On a Jetson itself: its monitor, what the doctor knows of it, a bench with its power.

The same checks run everywhere against a made-up board; those on a board are skipped where there is none, saying so.
"""

import os
import re
import time

import pytest
from fakes.boards import write_board_tree
from fakes.power import write_tegrastats

from edgeqlora_jetson.board.detect import detect_board
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.doctor.run import examine, format_findings
from edgeqlora_jetson.power.tegrastats import TegrastatsSource

HERE = os.path.dirname(os.path.abspath(__file__))


@pytest.fixture(params=["made-up", pytest.param("real", marks=pytest.mark.jetson)])
def root(request, tmp_path, monkeypatch):
    """Where the board's /sys, /proc and /etc begin."""
    if request.param == "real":
        board = detect_board()
        if not board.is_jetson:
            pytest.skip("needs a Jetson board: this machine is none ({})".format(board.how))
        return "/"
    with open(os.path.join(HERE, "fixtures", "tegrastats_lines.txt")) as file:
        line = next(line.rstrip("\n") for line in file if "VDD_IN" in line and "VDD_CPU_GPU_CV" in line)
    # Two readings in turns: a sensor that lives never stands still.
    other = re.sub(r"VDD_IN (\d+)", lambda found: "VDD_IN {}".format(int(found.group(1)) + 1), line)
    assert other != line
    program = write_tegrastats(tmp_path / "bin", [line, other])
    monkeypatch.setenv("PATH", os.path.dirname(program) + os.pathsep + os.environ["PATH"])
    write_board_tree(tmp_path, "orin-nano-r36")
    return str(tmp_path)


def test_tegrastats_prints_rails(root):
    source = TegrastatsSource(interval_s=0.1, root=root)
    source.start()
    samples, end_s = [], time.monotonic() + 10
    while len(samples) < 3 and time.monotonic() < end_s:
        samples += source.poll()
        time.sleep(0.05)
    source.stop()
    assert len(samples) >= 3, source.error
    for sample in samples:
        assert sample.rails_mw
        assert 0 < max(sample.rails_mw.values()) < 200000


def test_the_doctor_recognises_the_board(root):
    board = detect_board(root)
    assert board.is_jetson
    assert board.id is not None, board.how
    assert board.l4t is not None
    assert board.power_mode is not None, board.power_mode_how
    text = format_findings(examine(root=root))
    assert board.title in text
    assert "Jetson not recognised" not in text


def test_a_bench_with_the_boards_power_is_valid(root, fixture_folder):
    pytest.importorskip("onnxruntime")
    from edgeqlora_jetson.bench.run import Settings, run_bench

    bundle = Bundle.load(fixture_folder)
    seconds = 20.0 if root == "/" else 1.0
    settings = Settings(repeats=1, min_duration_s=seconds, idle_s=seconds / 2, power="tegrastats", power_interval_s=0.1)
    report = run_bench(bundle, bundle.read_eval_clips(), settings, root=root)
    assert report["validity"]["is_valid"], report["validity"]["problems"]
    assert report["energy"]["source"]["source"] == "tegrastats"
    assert report["energy"]["energy"]["value"] > 0
    assert report["energy"]["coverage"] >= 0.9
    assert report["board"]["id"] == detect_board(root).id
