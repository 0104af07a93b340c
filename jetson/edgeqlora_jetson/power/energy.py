"""Joules of a run from power samples: trapezoid on the samples' own times, window cut to the run.

Rules (jetson.md 4): present values, never a tool's averages; gaps are not bridged; what is not covered is said; an idle
baseline of the same session makes the net figure.
"""

from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, TypeVar

from ..errors import UserError
from ..figures import figure
from ..schema import Figure
from .sample import Sample, Scope

Item = TypeVar("Item")

MIN_COVERAGE = 0.9
MAX_GAP_S = 2.5
# One 430 ms average of JetPack 5's INA3221 is 2 % of this.
SHORT_RUN_S = 20.0
MAX_AVERAGING_PART = 0.02


class RailVanished(UserError):
    """A rail that is counted is missing from a reading in the middle of the run."""


class Integral(NamedTuple):
    """Energy of one rail in the part of a window that is covered by samples."""

    energy_j: float
    covered_s: float
    largest_gap_s: float  # longest time in the window without a sample


def measure_energy(
    samples: Sequence[Sample],
    start_s: float,
    end_s: float,
    scope: Scope,
    idle_power_mw: Optional[float] = None,
    averaging_s: Optional[float] = None,
    source_error: Optional[str] = None,
) -> Dict[str, Any]:
    """Energy of the rails in `scope` between two times of time.monotonic().

    samples: also some from before `start_s` and after `end_s`, so that the edges can be interpolated. Intervals longer
    than MAX_GAP_S are left out; if the rest is at least 0.9 of the window, they are filled with its mean power (said
    in `warnings`), else every figure is null with the reason. source_error: why the source died, if it did.

    Returns figures energy, net_energy, mean_power, peak_power, idle_power, per_rail; energy_scope, rails, coverage,
    largest_gap_s, n_samples, duration_s, warnings. Raises RailVanished.
    """
    samples = sorted(samples, key=lambda sample: sample.time_s)
    duration_s = end_s - start_s
    inside = [sample for sample in samples if start_s <= sample.time_s <= end_s]
    check_rails(inside, start_s, scope)
    integrals = {rail: integrate_rail(samples, rail, start_s, end_s, MAX_GAP_S) for rail in scope.rails}
    covered_s = min([integral.covered_s for integral in integrals.values()] or [0.0])
    coverage = covered_s / duration_s if duration_s > 0 else 0.0
    result: Dict[str, Any] = {
        "energy_scope": scope.energy_scope,
        "rails": list(scope.rails),
        "coverage": round(coverage, 4),
        "largest_gap_s": round(max([i.largest_gap_s for i in integrals.values()] or [max(0.0, duration_s)]), 3),
        "n_samples": len(inside),
        "duration_s": round(duration_s, 6),
    }
    reason = _reason_for_none(inside, start_s, duration_s, coverage, source_error)
    if reason is None:
        energies_j = {rail: i.energy_j * duration_s / i.covered_s for rail, i in integrals.items()}
        result.update(_figures(energies_j, duration_s, idle_power_mw))
        result["peak_power"] = _peak_power(inside, scope)
    else:
        result = without_figures(result, reason)
        result["idle_power"] = figure(idle_power_mw, "mW", "no idle baseline was measured")
    result["warnings"] = _warnings(result, idle_power_mw, averaging_s, source_error)
    return result


def integrate_rail(samples: Sequence[Sample], rail: str, start_s: float, end_s: float, max_gap_s: float) -> Integral:
    """Energy of one rail in the window; every energy and mean power, also that of a training run, is made of these.

    samples: in order of time; those without the rail are skipped. max_gap_s: longer intervals count as not covered.
    A power rail is a polygon through its samples: the part inside the window is exact. A counter knows what it gained
    even across a gap, but not at which moment of it: only intervals cut by the window's edges must be short.
    """
    is_counter = any(rail in sample.counters_j for sample in samples)
    points = [(s.time_s, s.counters_j[rail]) for s in samples if rail in s.counters_j]
    if not is_counter:
        points = [(s.time_s, s.rails_mw[rail] / 1000.0) for s in samples if rail in s.rails_mw]
    energy_j = covered_s = 0.0
    for (t0, y0), (t1, y1) in _pairs(points):
        a, b = max(t0, start_s), min(t1, end_s)
        is_whole = a == t0 and b == t1
        is_reset = is_counter and y1 < y0
        if b <= a or is_reset or (t1 - t0 > max_gap_s and not (is_counter and is_whole)):
            continue
        slope = (y1 - y0) / (t1 - t0)
        energy_j += slope * (b - a) if is_counter else (b - a) * (y0 + slope * ((a + b) / 2 - t0))
        covered_s += b - a
    return Integral(energy_j, covered_s, _largest_gap_s([t for t, _ in points], start_s, end_s))


def _pairs(items: Sequence[Item]) -> Iterator[Tuple[Item, Item]]:
    return zip(items[:-1], items[1:])  # noqa: RUF007 - itertools.pairwise came with Python 3.10


def _largest_gap_s(times_s: Sequence[float], start_s: float, end_s: float) -> float:
    """Longest interval between samples that touches the window; its edges count as samples where none lies outside."""
    before = [t for t in times_s if t <= start_s][-1:] or [start_s]
    after = [t for t in times_s if t >= end_s][:1] or [end_s]
    times_s = before + [t for t in times_s if start_s < t < end_s] + after
    return max(b - a for a, b in _pairs(times_s))


def check_rails(inside: Sequence[Sample], start_s: float, scope: Scope) -> None:
    """Raise RailVanished where a rail that is counted is missing from a sample."""
    for sample in inside:
        for rail in scope.rails:
            if rail not in sample.rails_mw and rail not in sample.counters_j:
                seen = sorted(set(sample.rails_mw) | set(sample.counters_j))
                raise RailVanished(
                    "power rail {} vanished {:.1f} s into the measurement (readings then: {}): the energy of this run is "
                    "not known. Repeat it; if it vanishes again choose another source with --power".format(
                        rail, sample.time_s - start_s, ", ".join(seen) or "none"
                    )
                )


def _reason_for_none(
    inside: Sequence[Sample], start_s: float, duration_s: float, coverage: float, source_error: Optional[str]
) -> Optional[str]:
    if duration_s <= 0:
        return "the measured window is empty ({:.3f} s)".format(duration_s)
    if coverage >= MIN_COVERAGE:
        return None
    last = "none in it" if not inside else "the last {:.1f} s into it".format(inside[-1].time_s - start_s)
    return "power samples cover {:.0%} of the {:.1f} s measured, at least {:.0%} needed ({}){}".format(
        coverage, duration_s, MIN_COVERAGE, last, ": " + source_error if source_error else ""
    )


def _figures(energies_j: Dict[str, float], duration_s: float, idle_power_mw: Optional[float]) -> Dict[str, Any]:
    energy_j = sum(energies_j.values())
    net_j, reason = None, "no idle baseline was measured"
    if idle_power_mw is not None:
        net_j = round(energy_j - idle_power_mw / 1000.0 * duration_s, 6)
    return {
        "energy": figure(round(energy_j, 6), "J"),
        "net_energy": figure(net_j, "J", reason),
        "mean_power": figure(round(energy_j / duration_s * 1000.0, 3), "mW"),
        "idle_power": figure(idle_power_mw, "mW", reason),
        "per_rail": {rail: figure(round(value, 6), "J") for rail, value in energies_j.items()},
    }


def without_figures(energy: Dict[str, Any], reason: str) -> Dict[str, Any]:
    """What measure_energy gave with every figure null for `reason`, the idle power too: the sensor cannot be believed."""
    units = {"energy": "J", "net_energy": "J", "mean_power": "mW", "peak_power": "mW", "idle_power": "mW"}
    missing: Dict[str, Any] = {name: figure(None, unit, reason) for name, unit in units.items()}
    return dict(energy, per_rail={rail: figure(None, "J", reason) for rail in energy["rails"]}, **missing)


def _peak_power(inside: Sequence[Sample], scope: Scope) -> Figure:
    """Highest sum of the rails: at a sample, or where there are counters the mean between two samples."""
    if all(rail in sample.rails_mw for sample in inside for rail in scope.rails):
        peaks_mw = [sum(sample.rails_mw[rail] for rail in scope.rails) for sample in inside]
    else:
        peaks_mw = []
        for a, b in _pairs(inside):
            if b.time_s > a.time_s:
                parts = [integrate_rail((a, b), rail, a.time_s, b.time_s, float("inf")) for rail in scope.rails]
                peaks_mw.append(1000.0 * sum(part.energy_j for part in parts) / (b.time_s - a.time_s))
    if not peaks_mw:
        return figure(None, "mW", "the run is shorter than the time between two samples")
    return figure(round(max(peaks_mw), 3), "mW")


def _warnings(
    result: Dict[str, Any], idle_power_mw: Optional[float], averaging_s: Optional[float], source_error: Optional[str]
) -> List[str]:
    warnings: List[str] = []
    duration_s = result["duration_s"]
    if duration_s < SHORT_RUN_S:
        warnings.append(
            "the run took {:.1f} s; energy is repeatable from {:.0f} s on: raise --min-duration".format(
                duration_s, SHORT_RUN_S
            )
        )
    if averaging_s is not None and averaging_s > MAX_AVERAGING_PART * duration_s:
        warnings.append(
            "the sensor averages over {:.2f} s, more than {:.0%} of the {:.1f} s measured: what ran before and after is "
            "in the figure".format(averaging_s, MAX_AVERAGING_PART, duration_s)
        )
    if source_error:
        warnings.append("the power source failed: {}".format(source_error))
    if result["energy"]["value"] is None:
        return warnings
    if result["coverage"] < 0.9999:
        warnings.append(
            "power samples cover {:.1%} of the run (longest gap {:.1f} s): the rest is filled with the mean power".format(
                result["coverage"], result["largest_gap_s"]
            )
        )
    if idle_power_mw is not None and result["net_energy"]["value"] <= 0:
        warnings.append(
            "the run took no more than the idle power of {:.0f} mW: the baseline was not idle, or the run did next to "
            "nothing".format(idle_power_mw)
        )
    return warnings
