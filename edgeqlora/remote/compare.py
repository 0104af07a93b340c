"""Reports of several hosts as one table; what a report does not hold is a footnote with its reason, never a 0."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeqlora.remote.farcall import printable

if TYPE_CHECKING:
    from edgeqlora.remote.bench import HostResult

_ABSENT = "not in this report"
_HOSTS_ACROSS = 4
_WIDTH = 27
_LABEL_WIDTH = 20


class Cell(NamedTuple):
    """One figure of one host."""

    text: str | None
    """None: it is not available."""
    reason: str = ""


def format_comparison(results: Sequence[HostResult]) -> str:
    """A table of hosts (across, four at a time) and figures (down), reasons of what is missing below it.

    Reads reports of every schema so far ("edgeqlora.report/1" and later) and of soaks; never raises for one that is
    incomplete. A host without report has only its verdict.
    """
    notes: list[str] = []
    blocks = [
        _format_block(results[i : i + _HOSTS_ACROSS], notes) for i in range(0, max(1, len(results)), _HOSTS_ACROSS)
    ]
    text = "\n\n".join(blocks)
    if notes:
        text += "\n\n" + "\n".join(f"({i}) {note}" for i, note in enumerate(notes, start=1))
    return text + "\n"


def _format_block(results: Sequence[HostResult], notes: list[str]) -> str:
    lines = [_line("Host", [result.host for result in results])]
    lines.append("-" * len(lines[0]))
    for label, read in ROWS:
        cells = [read(result.report) if result.report is not None else Cell("-") for result in results]
        lines.append(_line(label, [_shown(cell, notes) for cell in cells]))
    lines.append(_line("Verdict", [_shown(_verdict(result), notes) for result in results]))
    return "\n".join(line.rstrip() for line in lines)


def _line(label: str, texts: Sequence[str]) -> str:
    """A row of the table; a text that is too long goes on below itself."""
    columns = [_wrap(text) for text in texts]
    height = max((len(column) for column in columns), default=1)
    rows = []
    for i in range(height):
        row = f"{label if i == 0 else '':<{_LABEL_WIDTH}}"
        row += "".join(f"{column[i] if i < len(column) else '':<{_WIDTH + 2}}" for column in columns)
        rows.append(row.rstrip())
    return "\n".join(rows)


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH) or [""]


def _shown(cell: Cell, notes: list[str]) -> str:
    """A cell's text; its reason, if it has one, becomes a numbered note, the same reason the same number."""
    cell = Cell(printable(cell.text or ""), printable(cell.reason))
    if not cell.reason:
        return cell.text or "-"
    if cell.reason not in notes:
        notes.append(cell.reason)
    return f"{cell.text or 'not available'} ({notes.index(cell.reason) + 1})"


def _verdict(result: HostResult) -> Cell:
    report, reason = result.report, (result.error or "").strip()
    if report is None:
        return Cell("FAILED", reason or f"{result.host}: no report")
    valid, problems = _get(report, "validity", "is_valid"), _get(report, "validity", "problems")
    if valid is False:
        texts = [str(problem) for problem in problems] if isinstance(problems, list) else []
        return Cell("NOT VALID", f"{result.host}: {'; '.join(texts) or reason or 'no reason in its report'}")
    if not result.ok:
        return Cell("FAILED", reason)
    verdict = _get(report, "verdict")  # of a soak
    if isinstance(verdict, str):
        return Cell(verdict)
    if valid is None:
        return Cell("not judged", _ABSENT)
    warnings = _get(report, "validity", "warnings")
    if isinstance(warnings, list) and warnings:
        return Cell("valid, see note", f"{result.host}: {'; '.join(str(warning) for warning in warnings)}")
    return Cell("valid")


def _get(report: Any, *keys: str) -> Any:
    """The value under a path of keys; None where any of them is missing."""
    for key in keys:
        report = report.get(key) if isinstance(report, dict) else None
    return report


def _figure(fig: Any, digits: int, factor: float = 1.0, suffix: str = "") -> Cell:
    """A figure of a report ({"value", "unit"} or with null and "reason") as a cell."""
    if not isinstance(fig, dict):
        return Cell(None, _ABSENT)
    value = fig.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(None, str(fig.get("reason") or _ABSENT))
    return Cell(f"{value * factor:,.{digits}f}{suffix}")


def _board(report: dict[str, Any]) -> Cell:
    # The board part of a machine that is no Jetson says only that.
    paths = [("machine", "board"), ("machine", "cpu_model"), ("machine", "machine")]
    if _get(report, "board", "is_jetson"):
        paths[:0] = [("board", "title"), ("board", "id")]
    for keys in paths:
        text = _get(report, *keys)
        if isinstance(text, str) and text:
            return Cell(text)
    return Cell(None, _ABSENT)


def _power_mode(report: dict[str, Any]) -> Cell:
    mode, reason = _get(report, "board", "power_mode"), _get(report, "board", "power_mode_how")
    fact = _get(report, "method", "power_mode")
    if mode is None and isinstance(fact, dict):
        mode, reason = fact.get("value"), fact.get("reason")
    if not isinstance(mode, str) or not mode:
        return Cell(None, str(reason or _ABSENT))
    locked = _get(report, "board", "clocks_locked")
    clocks = {True: ", clocks locked", False: ", clocks not locked"}
    return Cell(mode + (clocks[locked] if isinstance(locked, bool) else ""))


def _runtime(report: dict[str, Any]) -> Cell:
    runtime, version = _get(report, "software", "runtime"), _get(report, "software", "runtime_version")
    if not isinstance(runtime, str):
        return Cell(None, _ABSENT)
    providers = _get(report, "software", "providers")
    names = [str(name).removesuffix("ExecutionProvider") for name in providers] if isinstance(providers, list) else []
    return Cell(f"{runtime} {version or ''}".rstrip() + (f", {'+'.join(names)}" if names else ""))


def _precision(report: dict[str, Any]) -> Cell:
    precision = _get(report, "bundle", "precision")
    if isinstance(precision, dict) and precision:
        kinds = {str(kind) for kind in precision.values()}
        pairs = (f"{graph} {kind}" for graph, kind in sorted(precision.items()))
        return Cell(kinds.pop() if len(kinds) == 1 else ", ".join(pairs))
    return Cell(precision) if isinstance(precision, str) and precision else Cell(None, _ABSENT)


def _error_rate(report: dict[str, Any]) -> Cell:
    """WER, or CER where the report says that it leads; texts normalised by "basic-unicode", else by the first one named."""
    accuracy = _get(report, "accuracy")
    if not isinstance(accuracy, dict) or not accuracy:
        return Cell(None, _ABSENT)
    name = "basic-unicode" if "basic-unicode" in accuracy else sorted(accuracy)[0]
    metric = "cer" if _get(report, "leading") == "cer" else "wer"
    suffix = (" CER" if metric == "cer" else "") + ("" if name == "basic-unicode" else f" ({name})")
    return _figure(_get(accuracy, name, metric), 2, suffix=suffix)


def _latency(percentile: str) -> Callable[[dict[str, Any]], Cell]:
    def read(report: dict[str, Any]) -> Cell:
        # Reports before schema 2 had no queries apart from model calls.
        for phase in ("query", "total"):
            fig = _get(report, "latency_ms", phase, percentile)
            if fig is not None:
                return _figure(fig, 1)
        return Cell(None, _ABSENT)

    return read


def _energy(report: dict[str, Any]) -> Cell:
    """Gross energy over the scope that the report names: figures of different scopes are not comparable."""
    cell = _figure(_get(report, "energy", "energy_per_audio_s"), 3)
    if cell.text is None:
        return cell
    scope = _get(report, "energy", "energy_scope")
    return Cell(f"{cell.text}, {str(scope or 'scope unknown').replace('_', ' ')}")


def _memory(report: dict[str, Any]) -> Cell:
    over = _figure(_get(report, "memory", "peak_over_baseline"), 1, suffix=" (system)")
    if over.text is not None:
        return over
    rss = _figure(_get(report, "memory", "peak_rss"), 1, suffix=" (process)")
    return rss if rss.text is not None else over


def _at(*keys: str, digits: int) -> Callable[[dict[str, Any]], Cell]:
    return lambda report: _figure(_get(report, *keys), digits)


def _scenario(report: dict[str, Any]) -> Cell:
    scenario, batch = _get(report, "method", "scenario"), _get(report, "method", "batch_size")
    if not isinstance(scenario, str):
        return Cell(f"batch {batch}") if batch is not None else Cell(None, _ABSENT)
    return Cell(scenario + (f", batch {batch}" if batch is not None else ""))


ROWS: tuple[tuple[str, Callable[[dict[str, Any]], Cell]], ...] = (
    ("Board", _board),
    ("Power mode", _power_mode),
    ("Runtime", _runtime),
    ("Precision", _precision),
    ("Scenario", _scenario),
    ("WER, %", _error_rate),
    ("Latency p50, ms", _latency("p50")),
    ("Latency p99, ms", _latency("p99")),
    ("Real-time factor", _at("throughput", "rtf", digits=4)),
    ("Energy, J/audio s", _energy),
    ("Peak memory, MiB", _memory),
)
