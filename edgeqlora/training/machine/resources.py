"""Energy and memory of a training run; null with a reason where there is no sensor."""

import time
import weakref

from edgeqlora.card import measured, missing
from edgeqlora_jetson.board.detect import detect_board
from edgeqlora_jetson.board.machine import measure_peak_rss_mib, measure_rss_mib
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.power import open_power_source, rail_table
from edgeqlora_jetson.power.energy import MAX_GAP_S, MIN_COVERAGE, check_rails, integrate_rail
from edgeqlora_jetson.power.watch import SensorWatch, reads_nothing
from edgeqlora_jetson.schema import Figure
from edgeqlora_jetson.sensors.session import board_facts
from edgeqlora_jetson.sensors.telemetry import Telemetry

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
    """Joules between construction and `read()`, whatever runs in between: a thread reads the sensors, as in a bench.

    It reads several times a second, so that no counter wraps around unseen. `add_up` now and then keeps memory small.
    """

    def __init__(self, root: str = "/"):
        table = rail_table(board_facts(detect_board(root), None))
        self._source, self._scope, notes = open_power_source("auto", table, root=root)
        self._notes, self._lost = "; ".join(notes), ""
        if self._source is None or self._scope is None:
            return
        self._energy_j = dict.fromkeys(self._scope.rails, 0.0)
        self._covered_s = dict.fromkeys(self._scope.rails, 0.0)
        self._watch = SensorWatch(self._scope.rails)
        self._telemetry = Telemetry(self._source, period_s=self._source.interval_s)
        self._telemetry.start()
        weakref.finalize(self, self._telemetry.stop)
        self._telemetry.wait_for_sample_after(0.0)
        samples = self._telemetry.samples()
        self._start_s = self._done_s = samples[0].time_s if samples else time.monotonic()

    def add_up(self) -> None:
        """Add up what was read since the last time, and forget the readings."""
        if self._source is None or self._scope is None or self._lost:
            return
        samples = self._telemetry.samples()
        if not samples:
            return
        end_s = samples[-1].time_s
        self._watch.add(samples)
        try:
            check_rails([s for s in samples if s.time_s > self._done_s], self._start_s, self._scope)
        except UserError as error:
            self._lost = str(self._telemetry.power_error or error)
            return
        for rail in self._scope.rails:
            part = integrate_rail(samples, rail, self._done_s, end_s, MAX_GAP_S)
            self._energy_j[rail] += part.energy_j
            self._covered_s[rail] += part.covered_s
        self._done_s = end_s
        self._telemetry.forget_before(end_s)

    def read(self) -> Figure:
        """Stop, and the figure: J with scope, source and duration, or null with the reason."""
        if self._source is None or self._scope is None:
            return missing(self._notes)
        self._telemetry.stop()
        self.add_up()
        now_s = time.monotonic()
        duration_s = (self._done_s if now_s - self._done_s <= MAX_GAP_S else now_s) - self._start_s
        covered_s = min(self._covered_s.values())
        reason = self._lost or self._telemetry.power_error or self._watch.problem()
        if reason is None and (covered_s <= 0 or covered_s < MIN_COVERAGE * duration_s):
            reason = f"power was read in {covered_s:.1f} of {duration_s:.1f} s, at least {MIN_COVERAGE:.0%} needed"
        if reason:
            return missing(reason)
        # What was not covered is filled with the mean power: left out, the figure would be too low.
        energies_j = {rail: self._energy_j[rail] * duration_s / self._covered_s[rail] for rail in self._scope.rails}
        if reason := reads_nothing(energies_j, self._watch.counters, duration_s):
            return missing(reason)
        return measured(
            round(sum(energies_j.values()), 3),
            "J",
            energy_scope=self._scope.energy_scope,
            source=self._source.name,
            meaning=_MEANING.get(self._scope.energy_scope, "input or rails of this board"),
            duration_s=round(duration_s, 3),
            coverage=round(covered_s / duration_s, 4),
        )
