"""What a look at a machine found, and what it means for a measurement."""

import functools
import textwrap
from typing import Any, Callable, Iterator, List, NamedTuple, Optional


class Finding(NamedTuple):
    """One thing found."""

    level: str
    """ok; note: worth knowing; warning: figures will be worse or less sure; problem: something will not work."""
    what: str
    """What was found, with values."""
    means: str
    """What it means for the measurement; "" where `what` says all."""
    command: Optional[str]
    """What corrects it; None: nothing to correct, or nothing that one command does."""


def ok(what: str, means: str = "") -> Finding:
    """A finding that needs nothing."""
    return Finding("ok", what, means, None)


def note(what: str, means: str = "", command: Optional[str] = None) -> Finding:
    """A finding worth knowing."""
    return Finding("note", what, means, command)


def warning(what: str, means: str, command: Optional[str] = None) -> Finding:
    """A finding that makes figures worse or less sure."""
    return Finding("warning", what, means, command)


def problem(what: str, means: str, command: Optional[str] = None) -> Finding:
    """A finding that stops something from working."""
    return Finding("problem", what, means, command)


def listed(check: Callable[..., Iterator[Finding]]) -> Callable[..., List[Finding]]:
    """The check with its findings in a list: it yields each where it finds it."""

    @functools.wraps(check)
    def examine(*arguments: Any, **settings: Any) -> List[Finding]:
        return list(check(*arguments, **settings))

    return examine


def format_findings(findings: List[Finding], width: int = 110) -> str:
    """Findings as text, one after the other in their order, and how many need a hand at the end."""
    lines: List[str] = []
    for finding in findings:
        lines += _wrap("{:<10}".format("[" + finding.level + "]"), finding.what, width)
        if finding.means:
            lines += _wrap(" " * 10, finding.means, width)
        if finding.command:
            lines.append(" " * 10 + "-> " + finding.command)
    counts = [
        "{} {}{}".format(n, level, "" if n == 1 else "s")
        for level in ("problem", "warning")
        for n in [sum(1 for finding in findings if finding.level == level)]
        if n
    ]
    lines.append("")
    lines.append(", ".join(counts) + "." if counts else "Nothing stands in the way.")
    return "\n".join(lines)


def _wrap(indent: str, text: str, width: int) -> List[str]:
    # Numbers, paths and names stay whole, so that they can be copied.
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=" " * 10,
        break_long_words=False,
        break_on_hyphens=False,
    )
