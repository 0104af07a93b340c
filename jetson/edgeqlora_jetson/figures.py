"""Figures of a report: one shape for what was measured and for what could not be, and their percentiles."""

from typing import Any, Dict, Optional, Sequence, cast

from .schema import Figure


def figure(value: Optional[float], unit: Optional[str], reason: Optional[str] = None, **how: Any) -> Figure:
    """A measured figure, or with value None one that is not known, and why. how: what else is to be said of it."""
    if value is None:
        if not reason:
            raise ValueError("a missing figure needs its reason")
        return cast(Figure, dict({"value": None, "unit": unit, "reason": reason}, **how))
    return cast(Figure, dict({"value": value, "unit": unit}, **how))


def nearest_rank(values: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile: the smallest value that at least `percent` % of the values do not exceed."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def spread(values: Sequence[float], unit: str) -> Dict[str, Figure]:
    """p50, p90, p99 (nearest rank), mean and max of at least one value, as figures."""
    result = {"p{}".format(p): figure(nearest_rank(values, p), unit) for p in (50, 90, 99)}
    result["mean"] = figure(sum(values) / len(values), unit)
    result["max"] = figure(max(values), unit)
    return result
