"""The report of a soak, schema "edgeqlora.soak/1", and its table.

schema, created_utc, is_complete   False when it was cut short
bundle, board, machine, software   as in a bench report
settings                           what was asked, thresholds included
checks                             name, value, limit, passed (null: could not be checked), detail
verdict                            passed, failed, not proven (memory or p99 could not be judged), not complete
energy_scope, rails                what J means; warnings, memory, thermal: of the whole run
rows                               soak.Interval each
"""

import time
from typing import Any, Dict, List

from ..bench.report import describe_software
from ..board.machine import read_machine
from .checks import judge_soak
from .run import Soak

SCHEMA = "edgeqlora.soak/1"


def build_soak_report(bundle: Any, soak: Soak, runtime: Any, sensors: Any) -> Dict[str, Any]:
    """Everything known of a soak that has ended, or was ended early."""
    checks = judge_soak(soak)
    return {
        "schema": SCHEMA,
        "created_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "is_complete": soak.is_complete,
        "verdict": verdict(checks, soak.is_complete),
        "bundle": {
            "name": bundle.name,
            "profile": (bundle.manifest.get("profile") or {}).get("name"),
            "manifest_sha256": bundle.manifest_sha256,
        },
        "board": dict(sensors.board._asdict()),
        "machine": read_machine(),
        "software": describe_software(runtime),
        "settings": dict(soak.settings._asdict(), settle_s=soak.settle_s, interval_s=soak.interval_s),
        "energy_scope": sensors.scope.energy_scope if sensors.scope is not None else "none",
        "rails": list(sensors.scope.rails) if sensors.scope is not None else [],
        "warnings": sensors.warnings,
        "memory": sensors.memory,
        "power_source": sensors.source.describe() if sensors.source is not None else None,
        "power_notes": sensors.notes,
        "thermal": soak.thermal,
        "checks": checks,
        "rows": [dict(row._asdict()) for row in soak.rows],
    }


def verdict(checks: List[Dict[str, Any]], is_complete: bool) -> str:
    """passed: memory and p99 are proven good and nothing failed. not proven: nothing failed, but it was not enough."""
    if any(check["passed"] is False for check in checks):
        return "failed"
    if not is_complete:
        return "not complete"
    needed = [check for check in checks if check["name"] in ("memory growth", "p99 drift")]
    return "passed" if all(check["passed"] for check in needed) else "not proven"


def format_soak(report: Dict[str, Any]) -> str:
    """The verdict, the checks, and how the run went in ten lines."""
    rows = report["rows"]
    lines = [
        "Soak of {} on {}: {} clips in {}".format(
            report["bundle"]["name"],
            report["machine"]["board"] or report["machine"]["cpu_model"] or report["machine"]["machine"],
            "{:,}".format(sum(row["n"] for row in rows)),
            format_time(rows[-1]["end_s"] if rows else 0),
        ),
        "",
        "{:>9}{:>9}{:>10}{:>10}{:>10}{:>12}{:>8}{:>11}{:>11}".format(
            "until", "clips", "p50 ms", "p99 ms", "RSS MiB", "J/audio s", "degC", "throttled", "preempted"
        ),
    ]
    step = max(1, len(rows) // 10)
    lines += [_row(row) for row in rows[step - 1 :: step]]
    lines.append("")
    for check in report["checks"]:
        value = check["value"]
        shown = (
            "not checked: " + value["reason"]
            if value["value"] is None
            else "{:+.2f} {} (limit {:g})".format(value["value"], value["unit"], check["limit"])
        )
        word = {True: "passed", False: "FAILED", None: "unknown"}[check["passed"]]
        lines.append(
            "{:<16}{:<9}{}{}".format(check["name"], word, shown, "; " + check["detail"] if check["detail"] else "")
        )
    lines.append("")
    for text in report["warnings"]:
        lines.append("To know: {}".format(text))
    if report["rails"]:
        lines.append("Energy is that of {} ({})".format(" + ".join(report["rails"]), report["energy_scope"]))
    unknown = [check["name"] for check in report["checks"] if check["passed"] is None]
    lines.append(
        "Verdict: {}{}".format(report["verdict"], " (not checked: {})".format(", ".join(unknown)) if unknown else "")
    )
    return "\n".join(lines)


def format_time(seconds: float) -> str:
    """ "1:05:09" or "5:09"."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return "{}:{:02d}:{:02d}".format(hours, minutes, rest) if hours else "{}:{:02d}".format(minutes, rest)


def _row(row: Dict[str, Any]) -> str:
    def shown(value: Any, digits: int) -> str:
        return "-" if value is None else "{:.{}f}".format(value, digits)

    throttled = {True: "yes", False: "no", None: "-"}[row["throttled"]]
    cells: List[str] = [
        "{:>9}".format(format_time(row["end_s"])),
        "{:>9}".format(row["n"]),
        "{:>10}".format(shown(row["p50_ms"], 2)),
        "{:>10}".format(shown(row["p99_ms"], 2)),
        "{:>10}".format(shown(row["rss_mib"], 2)),
        "{:>12}".format(shown(row["energy_j_per_audio_s"], 3)),
        "{:>8}".format(shown(row["temperature_c"], 1)),
        "{:>11}".format(throttled),
        "{:>11}".format(row["n_preempted"]),
    ]
    return "".join(cells)
