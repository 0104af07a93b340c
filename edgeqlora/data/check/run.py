"""Look at a whole data set before training: everything that would break it, or make its figures wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from edgeqlora.data.check.audio_findings import (
    audio_findings,
    channel_findings,
    duplicate_findings,
    format_findings,
    length_findings,
    speaker_findings,
)
from edgeqlora.data.check.clip_facts import ClipFacts, Clips, Progress, inspect_clips
from edgeqlora.data.check.report import SEVERITIES, CheckReport, DataFinding, SplitFigures, format_report
from edgeqlora.data.check.row_findings import row_findings
from edgeqlora.data.check.text_findings import (
    case_findings,
    character_findings,
    crowded_findings,
    spelling_findings,
    text_findings,
    token_findings,
)
from edgeqlora.data.label_rules import LabelRules
from edgeqlora.data.manifest import list_splits, load_for, load_rows
from edgeqlora.data.row import Row
from edgeqlora.errors import UserError

__all__ = ["CheckReport", "DataFinding", "LabelRules", "check_data", "format_report", "run_check"]

ALL = "all"
"""Name under which one source stands for all the splits inside it."""


def check_data(
    splits: Mapping[str, Sequence[Row]],
    window_s: float | None = None,
    rules: LabelRules | None = None,
    workers: int = 2,
    progress: Progress | None = None,
    language: str | None = None,
) -> CheckReport:
    """Decode every clip of every split once and report what is wrong.

    window_s: what the encoder sees; clips beyond it are reported. rules: what the model to be trained can write.
    workers: decoding threads. language: what the model will be told is spoken.

    Bad data is reported, never raised.
    """
    rules = rules or LabelRules()
    rows = [row for split in splits.values() for row in split]
    facts = iter(inspect_clips(rows, workers, progress))
    clips: Clips = {name: [next(facts) for _ in split] for name, split in splits.items()}
    findings = [
        *audio_findings(clips),
        *channel_findings(clips),
        *length_findings(clips, window_s),
        *duplicate_findings(clips),
        *speaker_findings(clips),
        *text_findings(clips, rules.expected_scripts),
        *spelling_findings(clips),
        *character_findings(clips, rules.unwritable),
        *token_findings(clips, rules),
        *crowded_findings(clips, rules),
        *format_findings(clips),
        *case_findings(clips),
        *row_findings(clips, rules, language),
    ]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return CheckReport({name: _figures(facts) for name, facts in clips.items()}, findings, window_s)


def run_check(
    sources: Mapping[str, str],
    window_s: float | None = None,
    rules: LabelRules | None = None,
    workers: int = 2,
    limit: int | None = None,
    progress: Progress | None = None,
    chosen: Mapping[str, str] | None = None,
    language: str | None = None,
) -> CheckReport:
    """Load sources (train, dev and test to manifest, folder or hub name) and check them together.

    Of a source that has splits of its own those are taken that training and scoring would take, or the `chosen` ones (by
    the same keys); with one source under the key `ALL` ("all"), every split it has is checked. `rules` (a processor's `label_rules`) are those of the model to be trained; `limit`
    looks at the first rows of each split only.

    Raises UserError when a source cannot be read at all.
    """
    if not sources:
        raise UserError("no data set to check: give at least one manifest or folder")
    splits: dict[str, list[Row]] = {}
    for name, source in sources.items():
        if name != ALL:
            splits[name] = load_for(name, source, (chosen or {}).get(name), limit)
            continue
        inside = list_splits(source)
        for split in sorted(inside, key=_reading_order):
            splits[split] = load_rows(source, split=split, limit=limit)
        if not inside:
            splits[name] = load_rows(source, limit=limit)
    return check_data(splits, window_s, rules, workers, progress, language)


def _reading_order(split: str) -> tuple[int, str]:
    """Training first: the other splits are held against it."""
    for place, start in enumerate(("train", "dev", "val", "test")):
        if split.startswith(start):
            return place, split
    return 9, split


def _figures(facts: Sequence[ClipFacts]) -> SplitFigures:
    decoded = [fact for fact in facts if fact.error is None]
    durations = [fact.duration_s for fact in decoded]
    speakers = {fact.row.speaker for fact in facts} - {None}
    characters = Counter(character for fact in facts for character in fact.row.text)
    return SplitFigures(
        n_rows=len(facts),
        hours=sum(durations) / 3600,
        longest_s=max(durations, default=0.0),
        n_speakers=len(speakers) or None,
        sample_rates_hz=dict(Counter(fact.sample_rate_hz for fact in decoded)),
        channels=dict(Counter(fact.n_channels for fact in decoded)),
        characters=dict(characters.most_common()),
        durations_s=durations,
    )
