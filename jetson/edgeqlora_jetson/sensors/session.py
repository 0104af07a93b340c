"""All sensors of one run, opened together: which board, its power, memory and heat, and what they say at the end."""

import time
from typing import Any, Dict, List, Optional

from ..board.detect import Board, detect_board, load_boards, set_power_mode
from ..errors import UserError
from ..figures import figure
from ..power import open_power_source
from ..power.energy import RailVanished, measure_energy, without_figures
from ..power.sample import rail_table
from ..power.watch import SensorWatch, reads_nothing
from .memory import MemoryMonitor
from .telemetry import Telemetry
from .thermal import ThermalMonitor

_ENERGY_FIGURES = (
    ("energy", "J"),
    ("net_energy", "J"),
    ("mean_power", "mW"),
    ("peak_power", "mW"),
    ("idle_power", "mW"),
)

_RAIL_FACTS = {"rails", "total_rail", "sum_rails", "energy_scope"}


class Sensors(object):
    """Sensors of one run. Use: open, enter (reading begins), rest, start_run, end_run; then the parts of the report.

    energy, memory, thermal: parts of the report, there after end_run. problems: what makes the run not valid.
    """

    def __init__(self, board: Board, source: Any, scope: Any, notes: List[str], root: str) -> None:
        self.board, self.source, self.scope, self.notes = board, source, scope, notes
        self.energy: Dict[str, Any] = {}
        self.memory: Dict[str, Any] = {}
        self.thermal: Dict[str, Any] = {}
        self.problems: List[str] = []
        self.warnings: List[str] = []
        self.sensor_problem: Optional[str] = None  # why readings of the run are no measurement
        self.was_named = False  # a power source asked for by name must give energy
        self._memory = MemoryMonitor(root)
        self._memory.start()
        self._thermal = ThermalMonitor(root, board.clocks_locked)
        self.telemetry = Telemetry(source, self._memory, period_s=source.interval_s if source else 0.25)
        self._idle = figure(None, "mW", "no idle baseline was taken")
        self._idle_s = 0.0
        self._watch = SensorWatch(scope.rails if scope is not None else ())

    @classmethod
    def open(
        cls,
        bundle: Any,
        power: str = "auto",
        power_interval_s: Optional[float] = None,
        power_mode: Optional[str] = None,
        root: str = "/",
    ) -> "Sensors":
        """Find the board and open its sensors; memory is counted from here, so open before the model is loaded.

        Raises UserError when a power source was named and does not work, or the power mode cannot be set.
        """
        if power_mode is not None:
            set_power_mode(power_mode, root)
        board = detect_board(root)
        facts = board_facts(board, bundle)
        source, scope, notes = open_power_source(power, rail_table(facts), interval_s=power_interval_s, root=root)
        sensors = cls(board, source, scope, notes, root)
        sensors.was_named = power != "auto"
        doubtful = sorted(set((facts or {}).get("unsourced") or ()) & _RAIL_FACTS)
        if source is not None and doubtful:
            sensors.warnings.append(
                "what the rails of {} mean is not confirmed by any public source ({}): do not compare its energy with "
                "other boards".format(board.title, ", ".join(doubtful))
            )
        return sensors

    @property
    def has_power(self) -> bool:
        return self.source is not None

    def __enter__(self) -> "Sensors":
        self.telemetry.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.telemetry.stop()

    def rest(self, idle_s: float) -> None:
        """Do nothing for idle_s and take the mean power of it as the idle baseline."""
        if self.source is None or idle_s <= 0:
            return
        self.telemetry.wait_for_sample_after(0.0)  # a window needs a sample before it
        start_s = time.monotonic()
        time.sleep(idle_s)
        end_s = time.monotonic()
        self.telemetry.wait_for_sample_after(end_s)
        self._idle = self.measure_energy(start_s, end_s, is_run=False)["mean_power"]
        self._idle_s = end_s - start_s

    def start_run(self) -> None:
        """Temperatures and throttle counters are compared from here; may be called again, for a new start."""
        if self.source is not None:
            self.telemetry.wait_for_sample_after(0.0)
        self.telemetry.thermal = None
        self._thermal.start()
        self.telemetry.thermal = self._thermal
        self.telemetry.read_now()

    def end_run(self, start_s: float, end_s: float, with_energy: bool = True) -> None:
        """Stop reading and work out what the sensors say of the window (time.monotonic()).

        with_energy: False where the samples were counted and forgotten row by row.
        """
        self.telemetry.read_now()
        if self.source is not None:
            self.telemetry.wait_for_sample_after(end_s)
        self.telemetry.stop()
        self.memory = self._finish("memory", self._memory)
        self.thermal = self._finish("thermal", self._thermal)
        self.problems += self.memory.pop("problems", [])
        if self.source is not None and self.telemetry.power_error:
            self.problems.append(
                "power source {} ended during the run: {}".format(self.source.name, self.telemetry.power_error)
            )
        if with_energy:
            self.energy = self._measure_energy(start_s, end_s)
            self.warnings += self.energy.get("warnings", [])
        for name, text in sorted(self.telemetry.errors.items()):
            self.problems.append("the {} sensors failed during the run: {}".format(name, text))

    def measure_energy(self, start_s: float, end_s: float, is_run: bool = True) -> Dict[str, Any]:
        """power.energy.measure_energy of a window, null where the sensor reads 0 or, in a run, does not move.

        Looks at all readings since the sensors were opened, and at those of the window: a sensor that stopped moving
        before the run is stuck as well. At rest equal readings are possible. Raises RailVanished.
        """
        samples = self.telemetry.samples()
        self._watch.add(samples)
        energy = measure_energy(
            samples,
            start_s,
            end_s,
            self.scope,
            idle_power_mw=self._idle["value"],
            averaging_s=self.source.averaging_s,
            source_error=self.telemetry.power_error,
        )
        inside = SensorWatch(self.scope.rails)
        inside.add(sample for sample in samples if start_s <= sample.time_s <= end_s)
        reason = None
        if energy["energy"]["value"] is not None:
            energies_j = {rail: fig["value"] for rail, fig in energy["per_rail"].items()}
            reason = reads_nothing(energies_j, self._watch.counters, energy["duration_s"])
        if is_run:
            reason = reason or inside.problem() or self._watch.problem()
            self.sensor_problem = reason or self.sensor_problem
        if reason is None:
            return energy
        return dict(without_figures(energy, reason + ". Choose another source with --power"), warnings=[])

    @property
    def is_stuck(self) -> bool:
        """Whether no reading so far differed from the others."""
        return self._watch.problem() is not None

    def doubt(self, text: str) -> None:
        """A fault of the power source: a problem where it was asked for by name, else a warning."""
        (self.problems if self.was_named else self.warnings).append(text)

    def _finish(self, name: str, monitor: Any) -> Dict[str, Any]:
        try:
            part: Dict[str, Any] = monitor.finish()
            return part
        except Exception as error:  # as in Telemetry: what was measured must not be lost for a sensor
            self.telemetry.errors.setdefault(name, "{}: {}".format(type(error).__name__, error))
            return {}

    def _measure_energy(self, start_s: float, end_s: float) -> Dict[str, Any]:
        if self.source is None:
            return missing_energy("no power source: " + ("; ".join(self.notes) or "none was asked for"))
        try:
            energy = self.measure_energy(start_s, end_s)
        except RailVanished as error:
            self.problems.append(str(error))
            energy = missing_energy(str(error))
        except UserError as error:
            energy = missing_energy(str(error))
        if self._idle["value"] is None:
            energy["idle_power"] = self._idle
        if energy["energy"]["value"] is None:
            self.doubt("no energy: {}".format(energy["energy"]["reason"]))
        energy["source"] = self.source.describe()
        energy["idle_s"] = self._idle_s
        energy["notes"] = self.notes
        return energy


def board_facts(board: Board, bundle: Any) -> Optional[Dict[str, Any]]:
    """Rails and modes of this board: from the user's own profile if the bundle was exported with one that is for this
    board, else from our own table.

    A shipped profile is never taken for a board that was not recognised: rails of another board would be counted.
    """
    profile = (bundle.manifest.get("profile") or {}) if bundle is not None else {}
    table = load_boards()
    if profile.get("rails") and profile.get("name") not in table and is_for(board, profile):
        return profile
    return table.get(board.id) if board.id else None


def is_for(board: Board, profile: Dict[str, Any]) -> bool:
    """Whether a profile names this board's part number, compatible string or model."""
    return bool(
        (board.part_number and board.part_number in (profile.get("part_numbers") or ()))
        or set(board.compatible) & set(profile.get("compatible") or ())
        or (board.model and board.model in (profile.get("models") or ()))
    )


def missing_energy(reason: str) -> Dict[str, Any]:
    """The energy part of a report whose figures are not known."""
    energy: Dict[str, Any] = {name: figure(None, unit, reason) for name, unit in _ENERGY_FIGURES}
    energy.update(energy_scope="none", rails=[], warnings=[])
    return energy
