"""jtop, the service of jetson-stats, where it is installed: it runs as root and so sees rails that a user does not.

Only its documented client is used: `jtop.jtop(interval=)`, `attach`, `start`, `power`, `close`
(rnext.it/jetson_stats/reference/jtop.html). Its averages and its total are not: from a rail list without an input rail
it makes a total by adding up whatever there is.
"""

import collections
import importlib
import time
from typing import Any, Deque, Dict, List, Mapping, Optional

from .sample import Sample
from .source import PowerSource, Unavailable

_SILENCE_S = 5.0


class JtopSource(PowerSource):
    """Rails as the jtop service gives them. Making one connects to it for a moment.

    Raises Unavailable without the package, without the service, and where it gives no rails.
    """

    name = "jtop"
    kind = "power"

    def __init__(self, interval_s: float = 0.5, root: str = "/"):
        super().__init__()
        self.interval_s = interval_s
        self._samples: Deque[Sample] = collections.deque()
        self._client: Any = None
        self._last_s = 0.0
        try:
            self._module = importlib.import_module("jtop")
        except ImportError as error:
            raise Unavailable("the package jetson-stats is not installed ({})".format(error)) from error
        self.version = str(getattr(self._module, "__version__", "not known"))
        if root != "/":
            raise Unavailable("the jtop service speaks for this machine only, not for root={}".format(root))
        self._probe()

    def start(self) -> None:
        """Connect to the service. Raises Unavailable where it does not answer."""
        self.stop()
        self.error = None
        self._samples.clear()
        self._last_s = time.monotonic()
        try:
            self._client = self._module.jtop(interval=self.interval_s)
            self._client.attach(self._take)
            self._client.start()
        # Its own exception, but also those of sockets, pickles and authentication across versions.
        except Exception as error:
            self._client = None
            raise Unavailable(
                "the jtop service does not answer: {}. Try sudo systemctl restart jtop; package and service must be of one "
                "version".format(" ".join(str(error).split()))
            ) from error

    def poll(self) -> List[Sample]:
        """Samples that the service sent since the last poll."""
        samples = []
        while self._samples:
            samples.append(self._samples.popleft())
        silent_s = time.monotonic() - self._last_s
        if self._client is not None and silent_s > max(_SILENCE_S, 10 * self.interval_s):
            self.error = "the jtop service has sent nothing for {:.0f} s".format(silent_s)
        else:
            self.error = None
        return samples

    def stop(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def describe(self) -> Dict[str, Any]:
        """Rails, interval, version."""
        return dict(super().describe(), version=self.version, averaging_s=None, averaging_from="not known")

    def _probe(self) -> None:
        self.start()
        end_s = time.monotonic() + 5.0 + 3 * self.interval_s
        try:
            while not self._samples and time.monotonic() < end_s:
                time.sleep(0.005)
        finally:
            self.stop()
        if not self._samples:
            raise Unavailable("the jtop service sent nothing in {:.0f} s".format(5.0 + 3 * self.interval_s))
        self.rails = tuple(self._samples[-1].rails_mw)
        self._samples.clear()
        if not self.rails:
            raise Unavailable("the jtop service knows no power rails on this board")

    def _take(self, client: Any) -> None:
        """Called from jtop's thread whenever it has new values."""
        self._last_s = time.monotonic()
        self._samples.append(Sample(self._last_s, parse_rails_mw(client.power), {}))


def parse_rails_mw(power: Optional[Mapping[str, Any]]) -> Dict[str, float]:
    """Rails of jtop's `power`, mW.

    "rail" holds the rails; jtop moves the input rail, where it knows one, to "tot" under its own name. A "tot" without
    a name, or named ALL, is a sum and no rail.
    """
    power = power or {}
    rails_mw: Dict[str, float] = {}
    for name, values in (power.get("rail") or {}).items():
        if values.get("online", True) and isinstance(values.get("power"), (int, float)):
            rails_mw[str(name)] = float(values["power"])
    total = power.get("tot") or {}
    if total.get("name") not in (None, "", "ALL") and isinstance(total.get("power"), (int, float)):
        rails_mw[str(total["name"])] = float(total["power"])
    return rails_mw
