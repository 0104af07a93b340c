"""Findings about what rows say beside audio and text: languages, fields, texts in two splits, quotation marks."""

from __future__ import annotations

from collections.abc import Iterator

from edgeqlora.data.agreement import spoken_language, unread_fields
from edgeqlora.data.check.clip_facts import Clips, all_clips, shown, training_split
from edgeqlora.data.check.report import DataFinding, Severity, findings_of
from edgeqlora.data.label_rules import LabelRules
from edgeqlora.errors import UserError


def row_findings(clips: Clips, rules: LabelRules, language: str | None) -> Iterator[DataFinding]:
    """What training would refuse or say about the rows; language: what the model will be told is spoken."""
    rows = [fact.row for _, fact in all_clips(clips)]
    try:
        remark = spoken_language(rows, language, rules)[1]
        severity: Severity = "note" if remark and remark.startswith("language ") else "warning"
    except UserError as error:
        remark, severity = str(error), "error"
    yield from findings_of(
        "row_language",
        severity,
        [remark] if remark else [],
        "language of the rows",
        "The model is told one language for all clips: give it with --language, and rows of other languages elsewhere.",
    )
    unread = unread_fields(rows)
    yield from findings_of(
        "unread_fields",
        "note",
        [unread] if unread else [],
        "data set with fields that nothing here reads",
        "Rename those that matter (docs/data.md lists what is read); the others do no harm.",
    )
    quoted = [f"{shown(name, fact)}: {fact.row.text:.60}" for name, fact in all_clips(clips) if fact.row.was_quoted]
    yield from findings_of(
        "quoted_text",
        "note",
        quoted,
        "text taken out of a table's quotation marks",
        "Marks around a sentence, and doubled ones in it, were left by an export. Look whether the texts are right now.",
    )
    training = training_split(clips)
    learned = {fact.row.text for name, fact in all_clips(clips) if name == training}
    again = [
        f"{shown(name, fact)}: {fact.row.text:.60}"
        for name, fact in all_clips(clips)
        if name != training and fact.row.text.strip() and fact.row.text in learned
    ]
    yield from findings_of(
        "text_across_splits",
        "note",
        again,
        f"text that {training} has too",
        "Right for commands and digits. For other speech the figures say little about sentences that are new.",
    )
