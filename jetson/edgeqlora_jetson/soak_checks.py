"""What a soak proves: growth of memory, drift of latency and energy, throttling, each against its limit."""

from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from .figures import figure


def rss_slope_mib_per_h(rows: Sequence[Any]) -> Optional[Dict[str, float]]:
    """Least-squares slope of resident memory over time, with its standard error; None with fewer than 3 rows."""
    points = [((row.start_s + row.end_s) / 2 / 3600.0, row.rss_mib) for row in rows if row.rss_mib is not None]
    if len(points) < 3:
        return None
    hours, mib = (np.array(values, dtype=np.float64) for values in zip(*points))
    spread = hours - hours.mean()
    slope = float((spread * (mib - mib.mean())).sum() / (spread**2).sum())
    residual = mib - mib.mean() - slope * spread
    error = float(np.sqrt((residual**2).sum() / (len(points) - 2) / (spread**2).sum()))
    return {"slope": slope, "standard_error": error}


def judge_soak(soak: Any) -> List[Dict[str, Any]]:
    """The checks: each with name, value figure, limit, passed (None: could not be checked), detail."""
    settings, rows = soak.settings, soak.settled_rows()
    slope = rss_slope_mib_per_h(rows)
    checks = [
        _check(
            "memory growth",
            figure(slope["slope"], "MiB/h") if slope else figure(None, "MiB/h", "fewer than 3 rows after settling"),
            settings.max_rss_slope_mib_per_h,
            "slope of resident memory after settling"
            + (", standard error {:.2f} MiB/h".format(slope["standard_error"]) if slope else ""),
        )
    ]
    for percent in (50, 99):
        if soak.first.n and soak.last.n:
            before_ms, after_ms = soak.first.percentile(percent), soak.last.percentile(percent)
            drift = figure(100.0 * (after_ms / before_ms - 1.0), "%")
            detail = "{:.2f} ms in the first third, {:.2f} ms in the last".format(before_ms, after_ms)
        else:
            drift, detail = figure(None, "%", "the run was too short after settling"), ""
        checks.append(_check("p{} drift".format(percent), drift, settings.max_p99_drift_percent, detail))
    checks.append(_energy_check(rows, settings))
    throttled = [row.throttled for row in soak.rows]
    known = [value for value in throttled if value is not None]
    checks.append(
        {
            "name": "throttling",
            "value": figure(float(sum(known)), "rows") if known else figure(None, "rows", "nothing here says so"),
            "limit": 0,
            "passed": not any(known) if known else None,
            "detail": "rows in which the board throttled",
        }
    )
    if soak.problems:
        checks.append(
            {
                "name": "sensors",
                "value": figure(float(len(soak.problems)), "problems"),
                "limit": 0,
                "passed": False,
                "detail": "; ".join(soak.problems),
            }
        )
    return checks


def _energy_check(rows: Sequence[Any], settings: Any) -> Dict[str, Any]:
    values = [row.energy_j_per_audio_s for row in rows if row.energy_j_per_audio_s is not None]
    third = len(values) // 3
    if not third:
        drift = figure(None, "%", "no power source, or too few rows")
        detail = ""
    else:
        before, after = float(np.mean(values[:third])), float(np.mean(values[-third:]))
        drift = figure(100.0 * (after / before - 1.0), "%")
        detail = "{:.3f} J per audio second in the first third, {:.3f} in the last".format(before, after)
    return _check("energy drift", drift, settings.max_energy_drift_percent, detail)


def _check(name: str, value: Dict[str, Any], limit: float, detail: str) -> Dict[str, Any]:
    """Growth beyond the limit fails; becoming smaller or faster does not."""
    passed = None if value["value"] is None else bool(value["value"] <= limit)
    return {"name": name, "value": value, "limit": limit, "passed": passed, "detail": detail}
