"""tegrastats, NVIDIA's own monitor, as a child process whose lines are stamped as they arrive.

Its printed time has a resolution of one second and its averages run since it started, so neither is used. It may hide
rails or fields from users who are not root; what it hides differs between releases (jetson.md 0.3).
"""

import collections
import os
import shutil
import subprocess
import tempfile
import threading
import time
from typing import Any, Deque, Dict, List, Optional

from .ina import read_averaging_s
from .sample import Sample
from .source import PowerSource, Unavailable
from .tegrastats_line import TegrastatsLine, parse_line

_END_S = 2.0  # given to tegrastats to end by itself before it is killed
_SILENCE_S = 5.0  # at least this long without a line before it counts as hanging


class TegrastatsSource(PowerSource):
    """Rails as tegrastats prints them. Making one runs it until its first line.

    program: where it is; default: found on PATH, else /usr/bin (sudo and cron have short PATHs).
    Raises Unavailable where it is not there, does not start, or prints no rails.
    """

    name = "tegrastats"
    kind = "power"

    def __init__(self, interval_s: float = 0.2, root: str = "/", program: Optional[str] = None):
        super().__init__()
        self.interval_s = interval_s
        self.latest: Optional[TegrastatsLine] = None
        self._samples: Deque[Sample] = collections.deque()
        self._process: Optional[subprocess.Popen] = None
        self._thread: Optional[threading.Thread] = None
        self._stopping = False
        self._death: Optional[str] = None
        self._last_line_s = 0.0
        self._n_lines = self._n_messages = self._n_together = 0
        self._message = ""
        self.program = program or _find(root)
        self.averaging_s = read_averaging_s(root)
        self._probe()

    def start(self) -> None:
        """Start tegrastats and the thread that reads it; samples of an earlier start are dropped."""
        self.stop()
        self.error = self._death = None
        self._stopping = False
        self._samples.clear()
        self._n_lines = self._n_messages = self._n_together = 0
        self._last_line_s = time.monotonic()
        # A file and not a pipe: nobody has to empty it, and its end is there when tegrastats has died.
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the thread
        try:
            self._process = subprocess.Popen(
                [self.program, "--interval", str(max(1, round(self.interval_s * 1000)))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=dict(os.environ, LC_ALL="C"),
                start_new_session=True,  # Ctrl-C must end the run first and not its sampler
            )
        except OSError as error:
            stderr.close()
            raise Unavailable("{} does not start: {}".format(self.program, error.strerror or error)) from error
        self._thread = threading.Thread(target=self._read, args=(self._process, stderr), name="tegrastats")
        self._thread.daemon = True
        self._thread.start()

    def poll(self) -> List[Sample]:
        """Samples of the lines that came since the last poll."""
        samples = []
        while self._samples:
            samples.append(self._samples.popleft())
        self.error = "tegrastats died, " + self._death if self._death else self._silence()
        return samples

    def stop(self) -> None:
        """End tegrastats: asked first, then killed. Samples not yet polled stay."""
        self._stopping = True
        process, thread = self._process, self._thread
        if process is None or thread is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        thread.join()
        self._process = self._thread = None

    def describe(self) -> Dict[str, Any]:
        """Program, rails, interval, averaging; what was hidden or not understood."""
        latest = self.latest
        return dict(
            super().describe(),
            program=self.program,
            averaging_s=self.averaging_s,
            averaging_from="update_interval of ina3221 in /sys; an INA238 does not say"
            if self.averaging_s
            else "not known",
            n_lines=self._n_lines,
            n_messages=self._n_messages,  # lines that are no statistics
            n_together=self._n_together,  # lines that came with the one before: their times are late
            dropped=latest.dropped if latest else {},
            unknown=latest.unknown if latest else [],
            is_root=os.geteuid() == 0,
        )

    def _probe(self) -> None:
        """Run until the first line of statistics; several intervals, as a busy board starts programs slowly."""
        self.start()
        end_s = time.monotonic() + 5.0 + 3 * self.interval_s
        try:
            while self.latest is None and self._death is None and time.monotonic() < end_s:
                time.sleep(0.005)
        finally:
            self.stop()
        if self.latest is None:
            waited = "it printed no line of statistics in {:.0f} s".format(5.0 + 3 * self.interval_s)
            raise Unavailable("it died at once, " + self._death if self._death else waited + self._said())
        self.rails = tuple(self.latest.rails_mw)
        self._samples.clear()
        if not self.rails:
            raise Unavailable(
                "it prints no power rails{}".format(
                    "" if os.geteuid() == 0 else ": some releases hide them from users who are not root; run with sudo"
                )
            )

    def _read(self, process: subprocess.Popen, stderr: Any) -> None:
        """The thread: pieces of text to lines, lines to samples, and at the end why there are no more."""
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        begun = b""
        try:
            while True:
                piece = os.read(descriptor, 65536)
                time_s = time.monotonic()
                if not piece:
                    break
                lines = (begun + piece).split(b"\n")
                begun = lines.pop()  # without its end yet; dropped if tegrastats dies before that
                self._n_together += max(0, len(lines) - 1)
                for line in lines:
                    self._take(line.decode("utf-8", errors="replace"), time_s)
            code = process.wait()
            if not self._stopping:
                self._death = "{}{}".format(_ending(code), self._said(stderr))
        finally:
            stderr.close()
            process.stdout.close()

    def _take(self, text: str, time_s: float) -> None:
        line = parse_line(text)
        if not line.is_stats:
            self._n_messages += 1
            self._message = text.strip() or self._message
            return
        self._n_lines += 1
        self._last_line_s = time_s
        self._samples.append(Sample(time_s, {name: float(power) for name, power in line.rails_mw.items()}, {}))
        self.latest = line

    def _silence(self) -> Optional[str]:
        silent_s = time.monotonic() - self._last_line_s
        if self._process is None or silent_s < max(_SILENCE_S, 10 * self.interval_s):
            return None
        return "tegrastats has printed nothing for {:.0f} s".format(silent_s)

    def _said(self, stderr: Any = None) -> str:
        """Its last words, if any."""
        text = self._message
        if stderr is not None:
            stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - 1000))
            text = stderr.read().decode("utf-8", errors="replace").strip() or text
        return '; it said "{}"'.format(text.splitlines()[-1][:200]) if text else ""


def _find(root: str) -> str:
    here = os.path.join(root, "usr/bin/tegrastats")
    program = shutil.which("tegrastats") or (here if os.access(here, os.X_OK) else None)
    if program is None:
        raise Unavailable(
            "there is no program tegrastats on PATH; in a container mount it from the host (-v /usr/bin/tegrastats:...)"
        )
    return program


def _ending(code: int) -> str:
    return "killed by signal {}".format(-code) if code < 0 else "exit code {}".format(code)
