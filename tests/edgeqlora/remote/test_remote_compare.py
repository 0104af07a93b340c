"""The comparison table: every schema is read, what is missing is said with its reason."""

import copy
from pathlib import Path
from typing import Any

from edgeqlora.remote.bench import HostResult
from edgeqlora.remote.compare import format_comparison


def fig(value: float | None, unit: str = "ms", reason: str = "") -> dict[str, Any]:
    return {"value": value, "unit": unit} if value is not None else {"value": None, "unit": unit, "reason": reason}


# Shaped as the runner's reports are; the figures are made up.
REPORT: dict[str, Any] = {
    "schema": "edgeqlora.report/2",
    "validity": {"is_valid": True, "problems": [], "warnings": []},
    "bundle": {"name": "b", "precision": {"encoder": "fp16", "decoder": "fp16"}},
    "board": {"is_jetson": True, "title": "Jetson Orin Nano 8GB", "id": "jetson-orin-nano", "power_mode": "MAXN_SUPER",
              "power_mode_how": "nvpmodel -q", "clocks_locked": True},
    "machine": {"board": "NVIDIA Jetson Orin Nano", "cpu_model": None, "machine": "aarch64"},
    "software": {"runtime": "onnxruntime", "runtime_version": "1.23.0",
                 "providers": ["TensorrtExecutionProvider", "CPUExecutionProvider"]},
    "method": {"scenario": "single-stream", "batch_size": 1},
    "latency_ms": {"query": {"p50": fig(41.25), "p99": fig(77.04)}, "total": {"p50": fig(40.0), "p99": fig(70.0)}},
    "throughput": {"rtf": fig(0.0213, "processing s / audio s")},
    "energy": {"energy_per_audio_s": fig(0.4321, "J/audio s"), "energy_scope": "module_input"},
    "memory": {"peak_over_baseline": fig(612.3, "MiB"), "peak_rss": fig(402.0, "MiB")},
    "accuracy": {"basic-unicode": {"wer": fig(3.456, "%"), "cer": fig(1.5, "%")}, "none": {"wer": fig(9.0, "%")}},
}  # fmt: skip


def result(host: str, report: dict[str, Any] | None, ok: bool = True, error: str | None = None) -> HostResult:
    return HostResult(host, ok, report, Path("r.json") if report else None, error, 1, 2, 3.0)


def row(text: str, label: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(label))


def test_a_whole_report():
    text = format_comparison([result("orin", REPORT)])
    assert text == (
        "Host                orin\n"
        "------------------------\n"
        "Board               Jetson Orin Nano 8GB\n"
        "Power mode          MAXN_SUPER, clocks locked\n"
        "Runtime             onnxruntime 1.23.0,\n"
        "                    Tensorrt+CPU\n"
        "Precision           fp16\n"
        "Scenario            single-stream, batch 1\n"
        "WER, %              3.46\n"
        "Latency p50, ms     41.2\n"
        "Latency p99, ms     77.0\n"
        "Real-time factor    0.0213\n"
        "Energy, J/audio s   0.432, module input\n"
        "Peak memory, MiB    612.3 (system)\n"
        "Verdict             valid\n"
    )


def test_hosts_side_by_side_share_their_notes():
    no_power = copy.deepcopy(REPORT)
    no_power["energy"]["energy_per_audio_s"] = fig(None, "J/audio s", "no power rails in /sys")
    text = format_comparison([result("a", REPORT), result("b", no_power), result("c", no_power)])
    assert row(text, "Energy").split("  ")[-1].strip() == "not available (1)"
    assert text.count("no power rails in /sys") == 1
    assert "\n(1) no power rails in /sys\n" in text


def test_a_host_that_failed_keeps_its_column():
    text = format_comparison([result("a", REPORT), result("b", None, ok=False, error="b: login refused")])
    assert row(text, "Latency p50").split() == ["Latency", "p50,", "ms", "41.2", "-"]
    assert row(text, "Verdict").split() == ["Verdict", "valid", "FAILED", "(1)"]
    assert "(1) b: login refused" in text


def test_a_run_that_is_not_valid_says_why():
    report = {**REPORT, "validity": {"is_valid": False, "problems": ["swap grew by 120 MiB"], "warnings": []}}
    text = format_comparison([result("a", report, ok=False, error="a: the runner says that it is not valid")])
    assert row(text, "Verdict").split() == ["Verdict", "NOT", "VALID", "(1)"]
    assert "(1) a: swap grew by 120 MiB" in text


def test_texts_without_spaces_are_compared_by_characters():
    report = {**REPORT, "leading": "cer"}
    assert row(format_comparison([result("a", report)]), "WER, %").endswith("1.50 CER")


def test_a_report_of_the_first_schema():
    """No board, validity or energy part; latency is of model calls; memory is of the process."""
    report = {key: REPORT[key] for key in ("bundle", "machine", "software", "throughput", "accuracy")}
    report |= {
        "schema": "edgeqlora.report/1",
        "method": {"batch_size": 4, "power_mode": fig(None, "", "this version does not read it")},
        "latency_ms": {"total": {"p50": fig(40.0), "p99": fig(70.0)}},
        "memory": {"peak_rss": fig(402.0, "MiB")},
        "power": {"energy_j": fig(None, "J", "no sensor")},
    }
    text = format_comparison([result("old", report)])
    assert row(text, "Board").endswith("NVIDIA Jetson Orin Nano")
    assert row(text, "Scenario").endswith("batch 4")
    assert row(text, "Latency p99").endswith("70.0")
    assert row(text, "Peak memory").endswith("402.0 (process)")
    assert row(text, "Verdict").endswith("not judged (2)")
    assert "(1) this version does not read it\n(2) not in this report\n" in text
    assert row(text, "Energy").endswith("not available (2)")


def test_a_soak_has_its_verdict():
    text = format_comparison([result("a", {"schema": "edgeqlora.soak/1", "verdict": "failed"})])
    assert row(text, "Verdict").endswith("failed")


def test_no_report_can_break_the_table():
    """Every part left out or replaced by nonsense, one at a time: a table comes out, and a figure is never made up."""

    def damaged(node: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        paths = []
        for key, value in node.items():
            paths.append((*path, key))
            if isinstance(value, dict):
                paths += damaged(value, (*path, key))
        return paths

    paths = damaged(REPORT)
    assert len(paths) > 50
    for path in paths:
        for nonsense in (None, [], {}, "text", 7, True, [{"a": 1}]):
            report = copy.deepcopy(REPORT)
            node = report
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = nonsense
            assert "Verdict" in format_comparison([result("a", report)])
    assert "41.2" not in format_comparison([result("a", {})])
    assert "Verdict" in format_comparison([])


def test_many_hosts_come_in_blocks_of_four():
    text = format_comparison([result(f"h{i}", REPORT) for i in range(6)])
    assert [line.split() for line in text.splitlines() if line.startswith("Host")] == [
        ["Host", "h0", "h1", "h2", "h3"],
        ["Host", "h4", "h5"],
    ]
    assert max(len(line) for line in text.splitlines()) < 140
