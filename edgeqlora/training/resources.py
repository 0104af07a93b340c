"""Energy and memory on the workstation: counters read before and after; null with a reason where there are none."""

import time
import weakref

from edgeqlora.card import measured, missing
from edgeqlora_jetson.machine import measure_peak_rss_mib, measure_rss_mib
from edgeqlora_jetson.power import Sample, open_power_source
from edgeqlora_jetson.power.energy import MIN_COVERAGE, integrate_rail
from edgeqlora_jetson.schema import Figure

# Training polls once a step. Between polls further apart than this a power reading says nothing; counters do not mind.
_MAX_GAP_S = 10.0
_MEANING = {
    "cpu_package": "RAPL: processor packages, not the memory, the board or the power supply",
    "gpu_board": "NVML: GPU boards, not the processor or the power supply",
    "cpu_package+gpu_board": "RAPL and NVML: processor packages and GPU boards, not the power supply",
}


def rss_mib() -> float:
    """Resident memory of this process now, in MiB; where the system does not say, its peak."""
    return measure_rss_mib() or measure_peak_rss_mib()


def peak_vram() -> Figure:
    """Peak memory that torch allocated on the GPU since the last call, or null with the reason."""
    import torch

    if not torch.cuda.is_available():
        return missing("no CUDA GPU in this run")
    peak_mib = torch.cuda.max_memory_allocated() / 1024**2
    torch.cuda.reset_peak_memory_stats()
    return measured(round(peak_mib, 1), "MiB", how="torch.cuda.max_memory_allocated")


class EnergyMeter:
    """Joules between construction and `read()`: GPU boards (NVML) and processor packages (RAPL), those that are there.

    Counters are differences, however long apart; a run longer than one wrap-around must call `poll` now and then. A GPU
    without an energy counter is integrated over its power at every poll, and null where polls were too far apart.
    """

    def __init__(self, root: str = "/"):
        self._start_s = time.monotonic()
        self._lost: str | None = None
        self._last: Sample | None = None
        self._source, self._scope, notes = open_power_source("auto", root=root)
        self._reason = "; ".join(notes)
        rails = self._scope.rails if self._scope is not None else ()
        self._energy_j, self._covered_s = dict.fromkeys(rails, 0.0), dict.fromkeys(rails, 0.0)
        if self._source is not None:
            self._source.start()
            weakref.finalize(self, self._source.stop)
            self.poll()

    def poll(self) -> None:
        """Add what was used since the last look."""
        if self._source is None or self._scope is None:
            return
        for sample in self._source.poll():
            gone = [r for r in self._scope.rails if r not in sample.counters_j and r not in sample.rails_mw]
            if gone:
                self._lost = f"{', '.join(gone)} gave no reading any more ({self._source.error})"
                continue
            if self._last is not None:
                for rail in self._scope.rails:
                    pair = (self._last, sample)
                    part = integrate_rail(pair, rail, self._last.time_s, sample.time_s, _MAX_GAP_S)
                    self._energy_j[rail] += part.energy_j
                    self._covered_s[rail] += part.covered_s
            self._last = sample

    def read(self) -> Figure:
        """The figure: J with scope, source and duration, or null with the reason."""
        if self._source is None or self._scope is None:
            return missing(self._reason)
        self.poll()
        duration_s = time.monotonic() - self._start_s
        reason = self._lost or self._source.error
        if reason is not None or self._last is None:
            return missing(reason or f"{self._source.name} gave no reading")
        powered = [rail for rail in self._scope.rails if rail in self._last.rails_mw]
        covered_s = min([self._covered_s[rail] for rail in powered] or [duration_s])
        if powered and covered_s <= MIN_COVERAGE * duration_s:
            return missing(
                f"power was read in {covered_s:.1f} of {duration_s:.1f} s, at least {MIN_COVERAGE:.0%} needed"
            )
        # What was not covered is filled with the mean power: left out, the figure would be too low.
        power_j = sum(self._energy_j[rail] * duration_s / self._covered_s[rail] for rail in powered)
        counted_j = sum(self._energy_j[rail] for rail in self._scope.rails if rail not in powered)
        return measured(
            round(counted_j + power_j, 3),
            "J",
            energy_scope=self._scope.energy_scope,
            source=self._source.name,
            meaning=_MEANING.get(self._scope.energy_scope, "input or rails of this board"),
            duration_s=round(duration_s, 3),
            coverage=round(covered_s / duration_s, 4),
        )
