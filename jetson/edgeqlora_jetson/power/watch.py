"""Tells a sensor that measures from one that is dead, asleep or stuck: its readings change, and are more than 0."""

from typing import Dict, Iterable, Mapping, Optional, Sequence, Set

from .sample import Sample

MIN_READINGS = 20
"""So many equal readings in a row are no chance: the least step of an INA3221 is far below what a processor's load changes by."""


class SensorWatch(object):
    """What was read of the rails that are counted; fed with samples in order of time, keeps none of them."""

    def __init__(self, rails: Sequence[str]) -> None:
        self._rails = rails
        self._first: Dict[str, float] = {}
        self.counters: Set[str] = set()  # rails that count energy
        self._moved: Set[str] = set()
        self._last_s = float("-inf")
        self._n_at_last = 0  # samples of that moment: lines that arrive together have one time
        self.n_readings = 0

    def add(self, samples: Iterable[Sample]) -> None:
        """Look at samples; those that were seen before are passed over."""
        n_seen = self._n_at_last
        for sample in samples:
            if sample.time_s < self._last_s:
                continue
            if sample.time_s == self._last_s and n_seen > 0:
                n_seen -= 1
                continue
            if sample.time_s > self._last_s:
                self._last_s, self._n_at_last, n_seen = sample.time_s, 0, 0
            self._n_at_last += 1
            self.n_readings += 1
            for rail in self._rails:
                if rail in sample.counters_j:
                    self.counters.add(rail)
                value = sample.counters_j.get(rail, sample.rails_mw.get(rail))
                if value is not None and value != self._first.setdefault(rail, value):
                    self._moved.add(rail)

    @property
    def stuck(self) -> Sequence[str]:
        """Rails that never changed: a counter for itself, rails of power only where none of them did (one may be off)."""
        powered = [rail for rail in self._rails if rail not in self.counters]
        still = [rail for rail in self.counters if rail not in self._moved]
        return sorted(still) + ([] if self._moved & set(powered) else powered)

    def problem(self) -> Optional[str]:
        """Why these readings are no measurement; None: nothing speaks against them."""
        if self.n_readings < MIN_READINGS or not self.stuck:
            return None
        return "the sensor does not move: {} readings of {}, all equal. It is stuck, asleep or not behind this load".format(
            self.n_readings,
            ", ".join(
                "the counter of " + rail if rail in self.counters else "{} ({:,.0f} mW)".format(rail, self._first[rail])
                for rail in self.stuck
                if rail in self._first
            ),
        )


def reads_nothing(energies_j: Mapping[str, float], counters: Iterable[str], duration_s: float) -> Optional[str]:
    """Why energies of a run, by rail, cannot be consumption: 0 or less in all, or on one of `counters`; None: they can.

    counters: rails that count energy. Whole GPUs and processors, which always take some; a rail of power may be off.
    """
    rails = [rail for rail in sorted(set(counters) & set(energies_j)) if energies_j[rail] <= 0]
    if not rails and sum(energies_j.values()) > 0:
        return None
    rails = rails or list(energies_j)
    return "the sensor reads 0: {} gave {:.3f} J in {:.1f} s. It is dead, asleep or not behind this load".format(
        " + ".join(rails), sum(energies_j[rail] for rail in rails), duration_s
    )
