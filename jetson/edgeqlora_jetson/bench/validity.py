"""Is a run valid, and what must be known before its figures are compared with others?"""

from typing import Any, Dict, List, Sequence

MIN_CALLS_P99 = 100


def judge(report: Dict[str, Any], settings: Any, problems: Sequence[str], warnings: Sequence[str]) -> Dict[str, Any]:
    """The "validity" part of a report: is_valid, problems (each makes it not valid), warnings.

    problems, warnings: what the sensors found (a rail that vanished, swap that grew, a run too short for its energy).
    """
    found, doubts = list(problems), list(warnings)
    _throttling(report, settings, found, doubts)
    _server(report, settings, found, doubts)
    _board(report, doubts)
    n_calls = sum(len(row["latency_ms"]) for row in report["utterances"])
    if n_calls < MIN_CALLS_P99:
        doubts.append(
            "p99 of {} clips is nearly the slowest one: measure at least {} (--repeats, --min-count)".format(
                n_calls, MIN_CALLS_P99
            )
        )
    warm_up = report["method"]["warmup"]
    if settings.warmup and not warm_up["is_stable"]:
        doubts.append(
            "the warm-up was not stable after {n_calls} calls and {seconds:.0f} s: something else is running, or the "
            "clocks are changing".format(**warm_up)
        )
    if report["clips"]["n_incomplete"]:
        doubts.append(
            "{} of {} clips repeated themselves or ran into the token limit: the ends of their texts are missing".format(
                report["clips"]["n_incomplete"], report["clips"]["n"]
            )
        )
    if report["clips"]["n_unstable"]:
        doubts.append("{} clips gave different text in different repeats".format(report["clips"]["n_unstable"]))
    if report["clips"]["n_untimed"]:
        doubts.append(
            "{} clips did not fit in the memory kept for decoded audio: they count for WER, not for times".format(
                report["clips"]["n_untimed"]
            )
        )
    return {
        "is_valid": not found,
        "problems": found,
        "warnings": doubts,
        "checks": {"strict": settings.strict, "target_latency_ms": settings.target_latency_ms},
    }


def _throttling(report: Dict[str, Any], settings: Any, found: List[str], doubts: List[str]) -> None:
    thermal = report["thermal"]
    if thermal.get("throttled"):
        text = "the board throttled during the run: {}".format("; ".join(thermal.get("reasons") or ["no detail"]))
        (found if settings.strict else doubts).append(text)
    elif thermal.get("throttled") is None and settings.strict:
        found.append(
            "strict: nothing here says whether the board throttled ({})".format(
                "; ".join(thermal.get("reasons") or ["no counters, no clocks"])
            )
        )


def _server(report: Dict[str, Any], settings: Any, found: List[str], doubts: List[str]) -> None:
    method, latency_ms = report["method"], report["latency_ms"]
    if method["scenario"] != "server":
        return
    p99_ms = latency_ms["query"]["p99"]["value"]
    target_ms = settings.target_latency_ms
    if target_ms is not None and p99_ms > target_ms:
        found.append(
            "p99 from arrival to text is {:.1f} ms at {:.2f} clips/s, the target is {:g} ms: lower --rate".format(
                p99_ms, method["rate_per_s"], target_ms
            )
        )
    out_per_s, in_per_s = report["throughput"]["clips_per_s"]["value"], method["offered_per_s"]
    if latency_ms["waiting"]["p50"]["value"] > latency_ms["total"]["p99"]["value"] and out_per_s < 0.95 * in_per_s:
        doubts.append(
            "{:.2f} clips/s came in and {:.2f} went out, and most waited longer than a call takes: above what the "
            "board can do, latency grows with the length of the run".format(in_per_s, out_per_s)
        )


def _board(report: Dict[str, Any], doubts: List[str]) -> None:
    board, profile = report["board"], report["bundle"]["profile"]
    if board["is_jetson"] and profile and board["id"] and profile != board["id"]:
        doubts.append("the bundle was exported for {}, this board is {}".format(profile, board["id"]))
    if board["is_jetson"] and not board["clocks_locked"]:
        doubts.append("clocks were not pinned: for figures to compare, run sudo jetson_clocks first")
