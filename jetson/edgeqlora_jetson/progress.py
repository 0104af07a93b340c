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
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._is_terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        self._start_s: Optional[float] = None
        self._n_before = 0
        self._shown_s = clock()
        self._width = 0

    def update(self, n_done: int, n_total: int) -> None:
        """Show n_done of n_total, if it is time to, or all is done."""
        now_s = self._clock()
        if self._start_s is None:  # what came before (loading, warm-up) says nothing of the time left
            self._start_s, self._n_before = now_s, n_done
        every_s = _TERMINAL_EVERY_S if self._is_terminal else _LOG_EVERY_S
        if now_s - self._shown_s < every_s and not (self._is_terminal and n_done == n_total):
            return
        self._shown_s = now_s
        text = format_progress(self._label, n_done, n_total, now_s - self._start_s, self._n_before)
        if self._is_terminal:
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """End the line, so that what follows starts on its own."""
        if self._is_terminal and self._width:
            self._stream.write("\n")
            self._stream.flush()


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
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        self._label = ""
        self._shown_s = 0.0
        self._width = 0

    def update(self, label: str, elapsed_s: float) -> None:
        """Show `label` and the seconds it has taken so far."""
        is_new = label != self._label
        if not is_new and elapsed_s - self._shown_s < (_TERMINAL_EVERY_S if self._is_terminal else _LOG_EVERY_S):
            return
        self._label, self._shown_s = label, elapsed_s
        text = "{}, {}:{:02d}".format(label, int(elapsed_s) // 60, int(elapsed_s) % 60)
        if self._is_terminal:
            self._stream.write(("\n" if is_new and self._width else "\r") + text.ljust(self._width))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """End the line, so that what follows starts on its own."""
        if self._is_terminal and self._width:
            self._stream.write("\n")
            self._stream.flush()
