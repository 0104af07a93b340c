"""The report of a data check: findings, figures of each split, and their rendering as text."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SCHEMA = "edgeqlora.data_check/1"
WIDTH = 100
BAR_WIDTH = 40
N_EXAMPLES = 5
Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class DataFinding:
    """One kind of problem, with how often and where."""

    name: str
    """Stable name for programs, such as `missing_audio`."""
    severity: Severity
    """`error`: training or its figures would be wrong; `warning`: look at it; `note`: good to know."""
    count: int
    """Rows (or groups, as the title says) concerned."""
    title: str
    """What was found, in a few words."""
    examples: list[str]
    """The first few, by split and file name."""
    advice: str
    """What to do about it."""


def findings_of(name: str, severity: Severity, found: Sequence[str], title: str, advice: str) -> Iterator[DataFinding]:
    """One finding with the first few of `found` as examples; nothing if nothing was found."""
    if found:
        yield DataFinding(name, severity, len(found), title, list(found[:N_EXAMPLES]), advice)


@dataclass(frozen=True)
class SplitFigures:
    """Figures of one split."""

    n_rows: int
    """Utterances."""
    hours: float
    """Hours of audio that decodes."""
    longest_s: float
    """Seconds of the longest utterance."""
    n_speakers: int | None
    """Different speakers; None when no row names one."""
    sample_rates_hz: dict[int, int]
    """Rate of the files: how many."""
    channels: dict[int, int]
    """Number of channels: how many files."""
    characters: dict[str, int]
    """Every character of the transcripts: how often."""
    durations_s: list[float] = field(repr=False)
    """Seconds of each utterance that decodes."""


@dataclass(frozen=True)
class CheckReport:
    """Everything `edgeqlora data check` found."""

    splits: dict[str, SplitFigures]
    """Figures by split name."""
    findings: list[DataFinding]
    """Findings, errors first."""
    window_s: float | None
    """Window that clips were held against; None if none was given."""

    @property
    def n_errors(self) -> int:
        """Findings of severity error."""
        return sum(finding.severity == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The report as plain values: durations as a histogram, not one by one."""
        splits = {}
        for name, figures in self.splits.items():
            values = asdict(figures)
            values["duration_histogram"] = [
                {"from_s": low, "to_s": high, "count": count} for low, high, count in histogram(figures.durations_s)
            ]
            del values["durations_s"]
            splits[name] = values
        return {
            "schema": SCHEMA,
            "window_s": self.window_s,
            "n_errors": self.n_errors,
            "splits": splits,
            "findings": [asdict(finding) for finding in self.findings],
        }


def histogram(durations_s: list[float], most_bins: int = 12) -> list[tuple[float, float, int]]:
    """Count durations in bins of a round width (1, 2 or 5 times a power of ten): (from, to, count).

    The lower edge belongs to its bin. Empty bins inside are kept; empty input gives no bins.
    """
    if not durations_s:
        return []
    longest = max(durations_s)
    power = 10.0 ** math.floor(math.log10(max(longest, 1e-3) / most_bins))
    width = next(power * step for step in (1, 2, 5, 10, 20) if longest / (power * step) < most_bins)
    counts = Counter(int(duration / width) for duration in durations_s)
    bins = range(min(counts), max(counts) + 1)
    return [(round(i * width, 6), round((i + 1) * width, 6), counts[i]) for i in bins]


def format_report(report: CheckReport) -> str:
    """Render a report for a plain terminal 100 columns wide."""
    lines = ["split        rows    hours  longest s  speakers  sample rates (channels)"]
    for name, figures in report.splits.items():
        rates = " ".join(f"{rate} Hz x{count}" for rate, count in sorted(figures.sample_rates_hz.items()))
        channels = ", ".join(f"{n} ch x{count}" for n, count in sorted(figures.channels.items()))
        speakers = "?" if figures.n_speakers is None else str(figures.n_speakers)
        lines.append(
            f"{name:<10.10} {figures.n_rows:>6} {figures.hours:>8.2f} {figures.longest_s:>10.2f} "
            f"{speakers:>9}  {rates} ({channels or 'none'})"
        )
    for name, figures in report.splits.items():
        lines += ["", f"durations of {name}", *_bars(figures.durations_s)]
    lines += ["", "characters", *_characters(report.splits)]
    lines += ["", *_findings(report.findings)]
    return "\n".join(lines) + "\n"


def _bars(durations_s: list[float]) -> list[str]:
    bins = histogram(durations_s)
    if not bins:
        return ["  no audio that decodes"]
    most = max(count for _, _, count in bins)
    lines = []
    for low, high, count in bins:
        bar = "#" * math.ceil(BAR_WIDTH * count / most)
        lines.append(f"  {low:>6g} to {high:>6g} s {count:>7}  {bar}".rstrip())
    return lines


def _characters(splits: dict[str, SplitFigures]) -> list[str]:
    total: Counter[str] = sum((Counter(figures.characters) for figures in splits.values()), Counter())
    ranked = sorted(total, key=lambda character: (-total[character], character))
    # Joined with a no-break space, so that no line ends between a character and its count.
    shown = [f"{_visible(character)}\u00a0{total[character]}" for character in ranked[:60]]
    more = f"   and {len(ranked) - 60} more" if len(ranked) > 60 else ""
    lines = _wrap(f"{len(ranked)} different:   {'   '.join(shown)}{more}", "  ")
    return [line.replace("\u00a0", " ") for line in lines]


def _visible(character: str) -> str:
    if character == " ":
        return "space"
    return character if character.isprintable() and not character.isspace() else f"U+{ord(character):04X}"


def _findings(findings: list[DataFinding]) -> list[str]:
    if not findings:
        return ["nothing to correct"]
    lines = []
    for finding in findings:
        lines.append(f"{finding.severity.upper():<8} {finding.count} x {finding.title}")
        lines += [f"         {example}" for example in finding.examples]
        if finding.count > len(finding.examples) > 0:
            lines.append(f"         and {finding.count - len(finding.examples)} more")
        lines += _wrap("-> " + finding.advice, "         ")
    counts = [(severity, sum(finding.severity == severity for finding in findings)) for severity in SEVERITIES]
    told = ", ".join(f"{n} {severity}{'' if n == 1 else 's'}" for severity, n in counts if n)
    is_good = all(finding.severity == "note" for finding in findings)
    return [*lines, "", f"in all: {told}{': nothing to correct' if is_good else ''}"]


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
