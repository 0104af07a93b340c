"""What a soak proves: growth of memory, drift of latency and energy, throttling, each against its limit."""

from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from ..figures import figure
from ..schema import Figure


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
        _growth_check(slope, settings.max_rss_slope_mib_per_h),
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
    checks.append(_throttling_check(soak))
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


def _growth_check(slope: Optional[Dict[str, float]], limit: float) -> Dict[str, Any]:
    """Passed or failed only where the slope's own uncertainty (two standard errors) leaves no doubt."""
    if slope is None:
        missing = figure(None, "MiB/h", "fewer than 3 rows after settling")
        return {"name": "memory growth", "value": missing, "limit": limit, "passed": None, "detail": ""}
    growth, doubt = slope["slope"], 2 * slope["standard_error"]
    passed = True if growth + doubt <= limit else False if growth - doubt > limit else None
    return {
        "name": "memory growth",
        "value": figure(growth, "MiB/h"),
        "limit": limit,
        "passed": passed,
        "detail": "slope of resident memory after settling, plus or minus {:.2f} (95 %){}".format(
            doubt, "; a longer soak would tell" if passed is None else ""
        ),
    }


def _throttling_check(soak: Any) -> Dict[str, Any]:
    """Rows that throttled, and what the monitor of the whole run saw: a row reads clocks at its ends only."""
    known = [row.throttled for row in soak.rows if row.throttled is not None]
    whole = soak.thermal.get("throttled")
    reasons = "; ".join(soak.thermal.get("reasons") or [])
    is_known = bool(known) or whole is not None
    return {
        "name": "throttling",
        "value": figure(float(max(sum(known), bool(whole))), "rows")
        if is_known
        else figure(None, "rows", "nothing here says so"),
        "limit": 0,
        "passed": not (any(known) or whole) if is_known else None,
        "detail": "rows in which the board throttled" + ("; whole run: " + reasons if whole and reasons else ""),
    }


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


def _check(name: str, value: Figure, limit: float, detail: str) -> Dict[str, Any]:
    """Growth beyond the limit fails; becoming smaller or faster does not."""
    passed = None if value["value"] is None else bool(value["value"] <= limit)
    return {"name": name, "value": value, "limit": limit, "passed": passed, "detail": detail}
