"""Whether rows agree with each other, with their audio, and with what is asked of the model."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence

from edgeqlora.data.audio import probe
from edgeqlora.data.label_rules import LabelRules
from edgeqlora.data.row import Row
from edgeqlora.errors import UserError

TOUCH_S = 0.1
"""Cuts of one recording that overlap by no more than this are neighbours whose borders were rounded."""


def read_durations(rows: Sequence[Row]) -> list[float]:
    """Seconds of each row from its file's header. Raises UserError for audio that cannot be opened, and where what a row
    claims is far from what would be read: then the audio and the text do not belong together."""
    durations = [probe(row)[1] for row in rows]
    far = [(row, real) for row, real in zip(rows, durations, strict=True) if is_far(row.duration, real)]
    if far:
        row, real = far[0]
        raise UserError(
            f"{len(far)} of {len(rows)} rows claim another duration than their audio has: {row.name} says "
            f"{row.duration:g} s and has {real:.2f} s: a cut is written as start and end in seconds; correct the field, or "
            "remove it to use the whole file"
        )
    return durations


def is_far(claimed_s: float | None, real_s: float) -> bool:
    """Whether a claimed duration cannot be the same recording: off by more than 0.5 s and by more than a tenth."""
    return claimed_s is not None and abs(claimed_s - real_s) > max(0.5, 0.1 * real_s)


def verify_apart(train: Sequence[Row], dev: Sequence[Row]) -> int:
    """Raise UserError where dev has audio that is trained on; return how many dev rows have a text of the training data."""
    cuts = defaultdict(list)
    for row in train:
        cuts[_recording(row)].append(_range(row))
    shared = [
        row
        for row in dev
        if any(min(end, _range(row)[1]) - max(start, _range(row)[0]) > TOUCH_S for start, end in cuts[_recording(row)])
    ]
    if shared:
        raise UserError(
            f"{len(shared)} of {len(dev)} dev clips are in the training data, e.g. {shared[0].name}: dev figures would be "
            "those of clips that the model has learned; give other clips to --dev, or leave it out"
        )
    texts = {row.text for row in train}
    return sum(row.text in texts for row in dev)


def spoken_language(rows: Sequence[Row], given: str | None, rules: LabelRules) -> tuple[str | None, str | None]:
    """(language that the model is told, what the user should know about it or None).

    Without `given`, the language is that which all rows name. Raises UserError where all rows that name a language name
    another than `given`, or than the only one of the model.
    """
    code = rules.language_code
    if code is None:
        return given, None
    named = Counter(named for row in rows if row.language and (named := code(row.language)))
    told = code(given) if given else None
    wanted = told or rules.only_language
    n_named = sum(named.values())
    counts = ", ".join(f"{language} {n}" for language, n in named.most_common(5))
    if wanted is None:
        if len(named) == 1:
            language = next(iter(named))
            return language, f"language {language}, as the rows say"
        return None, f"rows name several languages ({counts})" if named else None
    others = n_named - named[wanted]
    if others and others == n_named:
        means = f"--language is {given}" if given else f"the model writes {wanted} only"
        raise UserError(
            f"{others} of {len(rows)} rows name another language ({counts}), and {means}: "
            "correct --language or the rows, or take another base model"
        )
    if others:
        return (
            told,
            f"{others} of {len(rows)} rows name another language ({counts}) than {wanted}, which the model is told",
        )
    return told, None


def unread_fields(rows: Sequence[Row]) -> str | None:
    """One line that names the fields of the rows that nothing reads, with counts; None if there are none."""
    counts = Counter(name for row in rows for name in row.unread)
    if not counts:
        return None
    return "fields that are not read: " + ", ".join(f"{name} ({n} rows)" for name, n in counts.most_common(12))


def _recording(row: Row) -> str:
    return os.path.realpath(row.audio) if row.read_bytes is None else row.audio


def _range(row: Row) -> tuple[float, float]:
    return row.start or 0.0, float("inf") if row.end is None else row.end
