"""A report as text for people who never saw the project."""

import textwrap
from typing import Any, Dict, List

from ..runtimes.providers import format_placement

_LABELS = {
    "query": "arrival to text",
    "waiting": "  waiting",
    "total": "samples to text",
    "decoder": "  decoder, all tokens",
    "first_token": "until the first token",
    "decoder_step": "one decoder step",
}
_SERVER_ONLY = ("query", "waiting")
_SCOPES = {
    "module_input": "at the module's input",
    "system_input": "at the board's input, carrier and peripherals included",
    "sum_of_rails": "sum of rails",
    "cpu_package": "processor packages alone",
    "gpu_board": "GPU boards alone",
    "cpu_package+gpu_board": "processor packages and GPU boards",
}


def format_table(report: Dict[str, Any]) -> str:
    """Text of a report (schema "edgeqlora.report/2"): what ran, where, how, and the figures with their units."""
    parts = (_header, _latency, _figures, _accuracy, _validity)
    return "\n".join("\n".join(part(report)) + "\n" for part in parts)


def format_figure(fig: Dict[str, Any], digits: int = 1) -> str:
    """ "12.3 ms", or "not measured (why)"."""
    if fig["value"] is None:
        return "not measured ({})".format(fig["reason"])
    return "{:,.{}f} {}".format(fig["value"], digits, fig["unit"])


def _header(report: Dict[str, Any]) -> List[str]:
    bundle, machine, software, board = (report[part] for part in ("bundle", "machine", "software", "board"))
    memory_mib = machine["memory_total_mib"]
    rows = [
        (
            "Bundle",
            "{} (base model {}, profile {}, {})".format(
                bundle["name"],
                bundle["base_model"],
                bundle["profile"],
                ", ".join("{} {}".format(graph, precision) for graph, precision in sorted(bundle["precision"].items())),
            ),
        ),
        (
            "Machine",
            "{}{}, {} cores, {} memory".format(
                machine["board"] + ", " if machine["board"] else "",
                machine["cpu_model"] or machine["machine"],
                machine["n_cores"],
                "{:,.0f} MiB".format(memory_mib) if memory_mib else "unknown",
            ),
        ),
        (
            "Software",
            "{} {} ({}), Python {}, numpy {}".format(
                software["runtime"],
                software["runtime_version"],
                ", ".join(software["providers"]),
                software["python"],
                software["numpy"],
            ),
        ),
        ("Method", _method(report)),
    ]
    if software.get("node_placement"):
        rows.insert(3, ("", "nodes really run: " + format_placement(software["node_placement"])))
    for note in software.get("notes") or ():
        rows.insert(3, ("", note))
    if board["is_jetson"]:
        rows.insert(2, ("Board", _board(board)))
    return ["{:<10}{}".format(label, text) for label, text in rows]


def _board(board: Dict[str, Any]) -> str:
    clocks = {True: "clocks locked", False: "clocks not locked", None: "clocks unknown"}[board["clocks_locked"]]
    return "{} ({}), JetPack {}, L4T {}, power mode {}, {}".format(
        board["id"] or "not in our table",
        board["how"],
        board["jetpack"] or "unknown",
        board["l4t"] or "unknown",
        board["power_mode"] or "unknown",
        clocks,
    )


def _method(report: Dict[str, Any]) -> str:
    method, clips = report["method"], report["clips"]
    n_timed = sum(len(row["latency_ms"]) for row in report["utterances"])
    text = "{}: {:,} runs of {} clips ({:,.1f} s of audio) in {:,.1f} s, batch {}, {} threads{}".format(
        method["scenario"],
        n_timed,
        clips["n"],
        clips["audio_s"],
        report["throughput"]["run_s"]["value"],
        method["batch_size"],
        method["threads"] + (method.get("streams") or 1) - 1,
        " in {} streams".format(method["streams"]) if (method.get("streams") or 1) > 1 else "",
    )
    if method["rate_per_s"]:
        text += ", Poisson arrivals at {:.3g}/s (seed {})".format(method["rate_per_s"], method["seed"])
    windows = ", ".join("{:g} s".format(window_s) for window_s in report["bundle"]["windows_s"])
    return text + "; {} warm-up calls not counted; windows {}".format(method["warmup"]["n_calls"], windows)


def _latency(report: Dict[str, Any]) -> List[str]:
    what = "clip" if report["method"]["batch_size"] == 1 else "batch"
    lines = ["{:<26}{:>10}{:>10}{:>10}{:>10}".format("Latency per {}, ms".format(what), "p50", "p90", "p99", "mean")]
    for phase, spread in report["latency_ms"].items():
        if phase in _SERVER_ONLY and report["method"]["scenario"] != "server":
            continue
        lines.append(
            "{:<26}".format(_LABELS.get(phase, "  " + phase))
            + "".join("{:>10.2f}".format(spread[column]["value"]) for column in ("p50", "p90", "p99", "mean"))
        )
    return lines


def _figures(report: Dict[str, Any]) -> List[str]:
    throughput, memory = report["throughput"], report["memory"]
    rows = [
        ("Real-time factor", "{:.4f} s of work for 1 s of audio (lower is better)".format(throughput["rtf"]["value"])),
        (
            "Throughput",
            "{}, {}".format(format_figure(throughput["clips_per_s"]), format_figure(throughput["audio_s_per_s"])),
        ),
        (
            "Memory",
            "this process at most {}, {} before the model; whole system at most {} over before".format(
                format_figure(memory["peak_rss"], 0),
                format_figure(memory["rss_before_load"], 0),
                format_figure(memory["peak_over_baseline"], 0) if "peak_over_baseline" in memory else "unknown",
            ),
        ),
        ("Loading", format_figure(report["load_ms"], 0)),
    ]
    rows += _energy(report["energy"]) + _thermal(report["thermal"])
    overhead = report["harness"]["overhead"]
    if overhead:
        rows.append(
            (
                "Measuring costs",
                "{:+.2f} % of the time ({:+.2f} to {:+.2f} with 95 % confidence, {} pairs of blocks)".format(
                    overhead["value"], overhead["low"], overhead["high"], overhead["n_pairs"]
                ),
            )
        )
    lines: List[str] = []
    for label, text in rows:
        lines += textwrap.wrap("{:<18}{}".format(label, text), 118, subsequent_indent=" " * 18, drop_whitespace=True)
    return lines


def _energy(energy: Dict[str, Any]) -> List[Any]:
    if energy["energy"]["value"] is None:
        return [("Energy", format_figure(energy["energy"]))]
    net = energy["net_energy_per_audio_s"]
    scope = _SCOPES.get(energy["energy_scope"], energy["energy_scope"])
    return [
        (
            "Energy",
            "{} ({} above idle)".format(
                format_figure(energy["energy_per_audio_s"], 3),
                format_figure(net, 3) if net["value"] is not None else "net unknown: {}".format(net["reason"]),
            ),
        ),
        (
            "Power",
            "{} mean, {} peak, {} idle".format(
                format_figure(energy["mean_power"], 0),
                format_figure(energy["peak_power"], 0),
                format_figure(energy["idle_power"], 0),
            ),
        ),
        (
            "  measured",
            "{} ({}), source {}, {} samples, {:.0f} % of the run covered".format(
                scope,
                " + ".join(energy["rails"]),
                energy["source"].get("source"),
                energy["n_samples"],
                100.0 * energy["coverage"],
            ),
        ),
    ]


def _thermal(thermal: Dict[str, Any]) -> List[Any]:
    zones = {name: zone["max"]["value"] for name, zone in (thermal.get("zones") or {}).items()}
    zones = {name: celsius for name, celsius in zones.items() if celsius is not None}
    throttled = {True: "THROTTLED", False: "no throttling", None: "throttling not known"}[thermal.get("throttled")]
    if not zones:
        return [("Heat", "no temperature sensor can be read; {}".format(throttled))]
    hottest = max(zones, key=lambda name: zones[name])
    return [("Heat", "{:.1f} degC at most ({}, {} zones); {}".format(zones[hottest], hottest, len(zones), throttled))]


def _accuracy(report: Dict[str, Any]) -> List[str]:
    lines = []
    for name, entry in sorted(report["accuracy"].items()):
        for rate in sorted(("wer", "cer"), key=lambda rate: rate != report["leading"]):
            fig = entry[rate]
            text = format_figure(fig, 2)
            if fig["value"] is not None:
                text += " of {:,} {}: {} wrong, {} missing, {} too many".format(
                    fig["n_reference"], fig["counted"], fig["substitutions"], fig["deletions"], fig["insertions"]
                )
            lines.append("{:<22}{}".format("{} ({})".format(rate.upper(), name), text))
    clips = report["clips"]
    for key, text in (("n_cut", "clips were longer than the largest window and were cut at quiet places"),):
        if clips[key]:
            lines.append("Note: {} of {} {}".format(clips[key], clips["n"], text))
    lines.append('Text normaliser: "none" compares as written; "basic-unicode" ignores case and punctuation.')
    return lines


def _validity(report: Dict[str, Any]) -> List[str]:
    validity = report["validity"]
    lines = []
    for label, texts in (("NOT VALID", validity["problems"]), ("To know", validity["warnings"])):
        for text in texts:
            lines += textwrap.wrap("{}: {}".format(label, text), 118, subsequent_indent="  ")
    return lines or ["No problem was found in this measurement."]
