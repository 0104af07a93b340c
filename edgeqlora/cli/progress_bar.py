"""A progress bar over things that can be counted; nothing at all where stderr is no terminal."""

import sys
from types import TracebackType
from typing import Any


class CountBar:
    """Context manager whose value is called with (done, total)."""

    def __init__(self, title: str):
        self.title = title
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "CountBar":
        return self

    def __call__(self, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn(self.title),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=total)
        self._bar.update(self._task, completed=done)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
