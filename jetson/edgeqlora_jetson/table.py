"""A report as text for people who never saw the project."""

from typing import Any, Dict, List

_PHASES = (
    ("total", "samples to text"),
    ("mel", "  log-mel"),
    ("encoder", "  encoder"),
    ("decoder", "  decoder, all tokens"),
    ("first_token", "until the first token"),
    ("decoder_step", "one decoder step"),
)


def format_table(report: Dict[str, Any]) -> str:
    """Text of a report (schema "edgeqlora.report/1"): what ran, where, how, and the figures with their units."""
    lines = _header(report) + [""] + _latency(report) + [""] + _figures(report) + [""] + _accuracy(report)
    return "\n".join(lines) + "\n"


def format_figure(fig: Dict[str, Any], digits: int = 1) -> str:
    """ "12.3 ms", or "not measured (why)"."""
    if fig["value"] is None:
        return "not measured ({})".format(fig["reason"])
    return "{:,.{}f} {}".format(fig["value"], digits, fig["unit"])


def _header(report: Dict[str, Any]) -> List[str]:
    bundle, machine, software, method, clips = (
        report[part] for part in ("bundle", "machine", "software", "method", "clips")
    )
    memory_mib = machine["memory_total_mib"]
    windows = ", ".join("{:g} s".format(window_s) for window_s in bundle["windows_s"])
    return [
        "Bundle    {} (base model {}, profile {}, {})".format(
            bundle["name"],
            bundle["base_model"],
            bundle["profile"],
            ", ".join("{} {}".format(graph, precision) for graph, precision in sorted(bundle["precision"].items())),
        ),
        "Machine   {}{}, {} cores, {} memory".format(
            machine["board"] + ", " if machine["board"] else "",
            machine["cpu_model"] or machine["machine"],
            machine["n_cores"],
            "{:,.0f} MiB".format(memory_mib) if memory_mib else "unknown",
        ),
        "Software  {} {} ({}), Python {}, numpy {}".format(
            software["runtime"],
            software["runtime_version"],
            ", ".join(software["providers"]),
            software["python"],
            software["numpy"],
        ),
        "Method    {} clips, {:,.1f} s of audio, x {} repeats, batch {}, {} threads, {} warm-up batches not "
        "counted; windows {}".format(
            clips["n"],
            clips["audio_s"],
            method["repeats"],
            method["batch_size"],
            method["threads"],
            method["warmup"],
            windows,
        ),
    ]


def _latency(report: Dict[str, Any]) -> List[str]:
    what = "clip" if report["method"]["batch_size"] == 1 else "batch"
    lines = ["{:<26}{:>10}{:>10}{:>10}{:>10}".format("Latency per {}, ms".format(what), "p50", "p90", "p99", "mean")]
    for phase, label in _PHASES:
        spread = report["latency_ms"][phase]
        lines.append(
            "{:<26}".format(label)
            + "".join("{:>10.2f}".format(spread[column]["value"]) for column in ("p50", "p90", "p99", "mean"))
        )
    return lines


def _figures(report: Dict[str, Any]) -> List[str]:
    throughput, memory, power = report["throughput"], report["memory"], report["power"]
    rows = [
        ("Real-time factor", "{:.4f} s of work for 1 s of audio (lower is better)".format(throughput["rtf"]["value"])),
        (
            "Throughput",
            "{}, {}".format(format_figure(throughput["clips_per_s"]), format_figure(throughput["audio_s_per_s"])),
        ),
        (
            "Memory",
            "peak {}; before the model was loaded {}".format(
                format_figure(memory["peak_rss"], 0), format_figure(memory["rss_before_load"], 0)
            ),
        ),
        ("Loading", format_figure(report["load_ms"], 0)),
        ("Power", format_figure(power["power_mw"])),
    ]
    return ["{:<18}{}".format(label, text) for label, text in rows]


def _accuracy(report: Dict[str, Any]) -> List[str]:
    lines = []
    for name, entry in sorted(report["accuracy"].items()):
        for rate, unit in (("wer", "words"), ("cer", "characters")):
            fig = entry[rate]
            text = format_figure(fig, 2)
            if fig["value"] is not None:
                text += " of {:,} {}: {} wrong, {} missing, {} too many".format(
                    fig["n_reference"], unit, fig["substitutions"], fig["deletions"], fig["insertions"]
                )
            lines.append("{:<18}{}".format("{} ({})".format(rate.upper(), name), text))
    clips = report["clips"]
    for key, text in (
        ("n_cut", "clips were longer than the largest window and were cut at quiet places"),
        ("n_incomplete", "clips ran into the token limit: their text may be cut off or looping"),
        ("n_unstable", "clips gave different text in different repeats"),
    ):
        if clips[key]:
            lines.append("Note: {} of {} {}".format(clips[key], clips["n"], text))
    lines.append('Text normaliser: "none" compares as written; "basic" ignores case and punctuation.')
    return lines
