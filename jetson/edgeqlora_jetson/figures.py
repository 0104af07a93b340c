"""Figures of a report: one shape for what was measured and for what could not be, and their percentiles."""

from typing import Any, Dict, Optional, Sequence


def figure(value: Optional[float], unit: Optional[str], reason: Optional[str] = None) -> Dict[str, Any]:
    """A measured figure, or with value None one that is not known, and why."""
    if value is None:
        if not reason:
            raise ValueError("a missing figure needs its reason")
        return {"value": None, "unit": unit, "reason": reason}
    return {"value": value, "unit": unit}


def nearest_rank(values: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile: the smallest value that at least `percent` % of the values do not exceed."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def spread(values: Sequence[float], unit: str) -> Dict[str, Any]:
    """p50, p90, p99 (nearest rank), mean and max of at least one value, as figures."""
    result = {"p{}".format(p): figure(nearest_rank(values, p), unit) for p in (50, 90, 99)}
    result["mean"] = figure(sum(values) / len(values), unit)
    result["max"] = figure(max(values), unit)
    return result
