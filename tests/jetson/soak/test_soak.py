"""Soak: slope and drift by hand, the histogram, and a soak of the tiny bundle with the settings' floor lifted."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

import edgeqlora_jetson
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.commands.measure import RowFile
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.figures import nearest_rank
from edgeqlora_jetson.soak.checks import judge_soak, rss_slope_mib_per_h
from edgeqlora_jetson.soak.histogram import LatencyHistogram
from edgeqlora_jetson.soak.report import format_time, verdict
from edgeqlora_jetson.soak.run import Interval, Soak, SoakSettings, check_soak


def row(start_s, rss_mib=100.0, energy=None, throttled=False):
    return Interval(start_s, start_s + 60.0, 10, 1.0, 2.0, rss_mib, energy, energy, 50.0, throttled, 0)


def test_slope_by_hand():
    """3 MiB in 30 minutes, evenly: 6 MiB/h, no scatter."""
    rows = [row(60.0 * i, 100.0 + 0.1 * i) for i in range(31)]
    slope = rss_slope_mib_per_h(rows)
    assert slope["slope"] == pytest.approx(6.0)
    assert slope["standard_error"] == pytest.approx(0.0, abs=1e-9)
    assert rss_slope_mib_per_h(rows[:2]) is None


def test_slope_of_noise_comes_with_its_error():
    rows = [row(60.0 * i, 100.0 + (1.0 if i % 2 else -1.0)) for i in range(40)]
    slope = rss_slope_mib_per_h(rows)
    assert abs(slope["slope"]) < 3 * slope["standard_error"]


def test_histogram_percentiles_are_within_a_tenth_of_a_percent():
    values = np.random.RandomState(0).gamma(3.0, 20.0, 5000)
    histogram = LatencyHistogram()
    for value in values:
        histogram.add(value)
    for percent in (1, 50, 90, 99, 100):
        assert histogram.percentile(percent) == pytest.approx(nearest_rank(values, percent), rel=1.1e-3)
    histogram.clear()
    assert histogram.n == 0
    with pytest.raises(ValueError, match="no latency"):
        histogram.percentile(50)


def test_histogram_keeps_what_lies_outside():
    histogram = LatencyHistogram()
    histogram.add(0.0)
    histogram.add(1e12)
    assert histogram.n == 2
    assert histogram.percentile(50) < 1.01e-3


def checks_of(soak):
    return {check["name"]: check for check in judge_soak(soak)}


def soaked(last_ms=10.0, rss_step=0.0, energy_step=0.0, throttled=False):
    """100 s of settling, then three thirds of 300 s."""
    soak = Soak(SoakSettings(duration_s=1000.0, settle_s=100.0))
    for _ in range(100):
        soak.count(50.0, 1000.0)  # while settling: forgotten
        soak.count(200.0, 10.0)
        soak.count(500.0, 500.0)  # the middle third
        soak.count(900.0, last_ms)
    for i in range(17):
        soak.rows.append(row(60.0 * i, 100.0 + rss_step * i, 2.0 + energy_step * i, throttled and i == 3))
    return soak


def test_a_quiet_soak_passes():
    checks = checks_of(soaked())
    assert {name: check["passed"] for name, check in checks.items()} == {
        "memory growth": True,
        "p50 drift": True,
        "p99 drift": True,
        "energy drift": True,
        "throttling": True,
    }
    assert checks["p99 drift"]["value"]["value"] == pytest.approx(0.0)


def test_each_fault_fails_its_own_check_and_no_other():
    for fault, name in (
        ({"last_ms": 10.6}, ("p50 drift", "p99 drift")),
        ({"rss_step": 0.02}, ("memory growth",)),  # 1.2 MiB/h
        ({"energy_step": 0.05}, ("energy drift",)),
        ({"throttled": True}, ("throttling",)),
    ):
        failed = tuple(n for n, check in checks_of(soaked(**fault)).items() if check["passed"] is False)
        assert failed == name


def test_throttling_between_rows_is_seen():
    """Rows read the clocks at their ends; the monitor of the whole run reads every second."""
    soak = soaked()
    soak.thermal = {"throttled": True, "reasons": ["gpu-throttle-alert rose"]}
    check = checks_of(soak)["throttling"]
    assert check["passed"] is False
    assert "gpu-throttle-alert rose" in check["detail"]


def test_growth_is_judged_only_where_its_uncertainty_leaves_no_doubt():
    soak = soaked()
    soak.rows[:] = [row(60.0 * i, 100.0 + (0.5 if i % 2 else 0.0)) for i in range(17)]
    check = checks_of(soak)["memory growth"]
    assert check["passed"] is None
    assert "a longer soak would tell" in check["detail"]
    assert verdict(judge_soak(soak), True) == "not proven"


def test_what_could_not_be_judged_is_not_passed():
    empty = Soak(SoakSettings(duration_s=1000.0))
    assert verdict(judge_soak(empty), True) == "not proven"
    assert verdict(judge_soak(soaked()), True) == "passed"
    assert verdict(judge_soak(soaked()), False) == "not complete"
    assert verdict(judge_soak(soaked(throttled=True)), False) == "failed"


def test_rows_are_never_longer_than_a_minute():
    assert Soak(SoakSettings(duration_s=30 * 86400.0)).interval_s == 60.0
    assert Soak(SoakSettings(duration_s=60.0)).interval_s == 1.0


def test_a_full_disk_is_said_once_and_the_soak_goes_on(tmp_path, capsys):
    rows = RowFile(str(tmp_path / "no" / "rows.jsonl"))
    rows.add({"n": 1})
    rows.add({"n": 2})
    assert capsys.readouterr().err.count("rows cannot be added") == 1


def test_becoming_faster_is_no_failure():
    assert checks_of(soaked(last_ms=5.0))["p99 drift"]["passed"] is True


def test_what_was_not_measured_is_not_passed():
    soak = Soak(SoakSettings(duration_s=1000.0))
    soak.rows.append(row(0.0, None, None, None))
    for check in judge_soak(soak):
        assert check["passed"] is None
        assert check["value"]["value"] is None
        assert check["value"]["reason"]


def test_a_vanished_rail_fails_the_soak():
    soak = soaked()
    soak.problems.append("rail VDD_IN vanished")
    assert checks_of(soak)["sensors"]["passed"] is False


def test_settings_out_of_range(fixture_folder):
    clips = Bundle.load(fixture_folder).read_eval_clips()
    with pytest.raises(UserError, match=r"duration_s=1, allowed 60 to"):
        check_soak(SoakSettings(duration_s=1.0), clips)
    with pytest.raises(UserError, match=r"settle_s=90, allowed 0 to 50"):
        check_soak(SoakSettings(duration_s=100.0, settle_s=90.0), clips)
    with pytest.raises(UserError, match="at least one"):
        check_soak(SoakSettings(duration_s=100.0), [])


def test_time_is_read_by_people():
    assert format_time(309.4) == "5:09"
    assert format_time(3909) == "1:05:09"


def test_a_soak_of_the_tiny_bundle_writes_rows_and_a_verdict(fixture_folder, virtual_time):
    pytest.importorskip("onnxruntime")
    from edgeqlora_jetson.soak.report import build_soak_report, format_soak
    from edgeqlora_jetson.soak.run import run_soak

    bundle = Bundle.load(fixture_folder)
    n_rows = []
    virtual_time.step_s = 0.05
    settings = SoakSettings(duration_s=60.0, interval_s=5.0, power="none", threads=1)
    done, runtime, sensors = run_soak(
        bundle, bundle.read_eval_clips(), settings, progress=lambda elapsed_s, s: n_rows.append(len(s.rows))
    )
    report = build_soak_report(bundle, done, runtime, sensors)
    json.dumps(report, allow_nan=False)
    assert report["is_complete"]
    assert n_rows == list(range(1, len(report["rows"]) + 1))
    assert all(r["n"] % 3 == 0 for r in report["rows"])  # whole passes over three clips
    assert all(r["end_s"] - r["start_s"] >= 5.0 for r in report["rows"])
    assert report["rows"][-1]["end_s"] == pytest.approx(60.0, abs=5.0)
    checks = {check["name"]: check for check in report["checks"]}
    # A clip takes the same time again and again.
    assert checks["p99 drift"]["value"]["value"] == pytest.approx(0.0, abs=0.3)
    assert checks["energy drift"]["value"]["reason"]
    assert "Verdict: " + report["verdict"] in format_soak(report)
    assert (report["energy_scope"], report["rails"]) == ("none", [])
    assert "peak_over_baseline" in report["memory"]


def test_a_soak_that_is_cut_short_keeps_its_rows(fixture_folder, tmp_path, monkeypatch, capsys, virtual_time):
    pytest.importorskip("onnxruntime")
    from edgeqlora_jetson.commands import measure as measure_commands
    from edgeqlora_jetson.soak import run as soak

    interval, n_called = soak._interval, []

    def third_is_interrupted(*args):
        n_called.append(1)
        if len(n_called) == 3:
            raise KeyboardInterrupt
        return interval(*args)

    monkeypatch.setattr(soak, "_interval", third_is_interrupted)
    output = str(tmp_path / "soak.json")
    settings = SoakSettings(duration_s=60.0, power="none", threads=1)
    assert measure_commands.run_soak_command(fixture_folder, None, None, output, settings) == 130
    with open(output) as file:
        report = json.load(file)
    assert (report["is_complete"], len(report["rows"])) == (False, 2)
    with open(output + ".rows.jsonl") as file:
        header, *rows = [json.loads(line) for line in file]
    assert rows == report["rows"]
    assert header["verdict"] == "not complete"
    assert header["bundle"] == {"name": "tiny-fixture", "manifest_sha256": report["bundle"]["manifest_sha256"]}
    assert "Verdict:" in capsys.readouterr().out


def test_sigterm_keeps_what_a_soak_found(fixture_folder, tmp_path):
    """As an SSH session that ends or a system that shuts down: in a process of its own."""
    pytest.importorskip("onnxruntime")
    output = str(tmp_path / "soak.json")
    command = [sys.executable, "-m", "edgeqlora_jetson", "soak", fixture_folder, "--hours", "0.0167", "--power", "none"]
    environment = dict(os.environ, PYTHONPATH=os.path.dirname(os.path.dirname(edgeqlora_jetson.__file__)))
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(command + ["--output", output], env=environment, stdout=nowhere, stderr=nowhere)
        try:
            rows_path, end_s = output + ".rows.jsonl", time.monotonic() + 60.0
            while time.monotonic() < end_s and process.poll() is None:
                if os.path.exists(rows_path):
                    with open(rows_path) as file:
                        if len(file.readlines()) >= 2:  # the head, and a row
                            break
                time.sleep(0.05)
            process.terminate()
            assert process.wait(timeout=30) == 130
        finally:
            if process.poll() is None:
                process.kill()
    with open(output) as file:
        report = json.load(file)
    assert report["is_complete"] is False
    assert len(report["rows"]) >= 1
