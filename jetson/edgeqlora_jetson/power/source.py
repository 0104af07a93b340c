"""What every power source has in common."""

from typing import Any, Dict, List, Optional, Tuple

from ..errors import UserError
from .sample import RailTable, Sample, Scope, resolve_scope


class Unavailable(UserError):
    """This source cannot be used on this machine; the text says why."""


class PowerSource(object):
    """A sensor of electrical power or energy. Probed when made; use: start, poll every `interval_s`, stop.

    Making one raises Unavailable where the machine does not have it.
    """

    name = ""  # one of SOURCES
    kind = "power"  # "power": Sample.rails_mw; "counter": Sample.counters_j
    interval_s = 0.2  # how often `poll` should be called, or how often the source itself samples
    averaging_s: Optional[float] = None  # over which the sensor averages; None: not known

    def __init__(self) -> None:
        self.error: Optional[str] = None  # why it died
        self.rails: Tuple[str, ...] = ()  # the rails seen when it was probed

    def resolve_scope(self, table: Optional[RailTable]) -> Scope:
        """What to count; raises UserError where no honest total is available."""
        return resolve_scope(table, self.rails)

    def start(self) -> None:
        """Begin to measure; again after stop. Counters go on from where they were. Raises Unavailable."""

    def poll(self) -> List[Sample]:
        """Samples since the last poll, oldest first; a polled source reads its sensors now."""
        raise NotImplementedError

    def stop(self) -> None:
        """End measuring; may be called twice."""

    def describe(self) -> Dict[str, Any]:
        """How it measures, for the report."""
        return {"source": self.name, "kind": self.kind, "rails": list(self.rails), "interval_s": self.interval_s}
