"""A progress line on stderr: rewritten in place on a terminal, one line every 10 s in a log."""

import sys
import time
from typing import Any, Optional

_TERMINAL_EVERY_S = 0.2
_LOG_EVERY_S = 10.0


class Progress(object):
    """Shows how far a run is and how long it will still take.

    label: what is being done. stream: where to write, default stderr.
    """

    def __init__(self, label: str, stream: Optional[Any] = None, clock: Any = time.monotonic) -> None:
        self._label = label
        self._line = _Line(stream)
        self._clock = clock
        self._start_s: Optional[float] = None
        self._n_before = 0
        self._shown_s = clock()

    def update(self, n_done: int, n_total: int) -> None:
        """Show n_done of n_total, if it is time to, or all is done."""
        now_s = self._clock()
        if self._start_s is None:  # what came before (loading, warm-up) says nothing of the time left
            self._start_s, self._n_before = now_s, n_done
        if now_s - self._shown_s < self._line.every_s and not (self._line.is_terminal and n_done == n_total):
            return
        self._shown_s = now_s
        self._line.show(format_progress(self._label, n_done, n_total, now_s - self._start_s, self._n_before))

    def close(self) -> None:
        """End the line, so that what follows starts on its own."""
        self._line.end()


def format_progress(label: str, n_done: int, n_total: int, elapsed_s: float, n_before: int = 0) -> str:
    """One progress line: "bench: 120 of 500 clips, 24 %, 1:05 left". n_before: done when elapsed_s began."""
    text = "{}: {} of {} clips, {:.0f} %".format(label, n_done, n_total, 100.0 * n_done / max(1, n_total))
    if n_before < n_done < n_total:
        left_s = int(elapsed_s / (n_done - n_before) * (n_total - n_done) + 0.5)
        text += ", {}:{:02d} left".format(left_s // 60, left_s % 60)
    return text


class Elapsed(object):
    """Shows what is being done and for how long, where nobody knows how long it will take.

    stream: where to write, default stderr. On a terminal rewritten in place, in a log one line every 10 s and at
    every change of what is done.
    """

    def __init__(self, stream: Optional[Any] = None) -> None:
        self._line = _Line(stream)
        self._label = ""
        self._shown_s = 0.0

    def update(self, label: str, elapsed_s: float) -> None:
        """Show `label` and the seconds it has taken so far."""
        is_new = label != self._label
        if not is_new and elapsed_s - self._shown_s < self._line.every_s:
            return
        if is_new:
            self._line.end()
        self._label, self._shown_s = label, elapsed_s
        self._line.show("{}, {}:{:02d}".format(label, int(elapsed_s) // 60, int(elapsed_s) % 60))

    def close(self) -> None:
        """End the line, so that what follows starts on its own."""
        self._line.end()


class _Line(object):
    """A line that is rewritten in place on a terminal, and a new one each time in a log."""

    def __init__(self, stream: Optional[Any]) -> None:
        self._stream = sys.stderr if stream is None else stream
        self.is_terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        self.every_s = _TERMINAL_EVERY_S if self.is_terminal else _LOG_EVERY_S
        self._width = 0

    def show(self, text: str) -> None:
        """Write the text, over the one before where that can be done."""
        self._stream.write("\r" + text.ljust(self._width) if self.is_terminal else text + "\n")
        self._width = len(text)
        self._stream.flush()

    def end(self) -> None:
        """Go on to a line of its own, if there is one to leave."""
        if self.is_terminal and self._width:
            self._stream.write("\n")
            self._stream.flush()
        self._width = 0
