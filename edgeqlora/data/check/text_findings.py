"""Findings about transcripts: empty, in the wrong script, beyond what the model can write."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Set

from edgeqlora.data.check.clip_facts import Clips, all_clips, shown, training_split
from edgeqlora.data.check.report import DataFinding, findings_of
from edgeqlora.data.label_rules import LabelRules
from edgeqlora.data.text import broken_parts, control_texts, is_most, scripts, scripts_of_language
from edgeqlora_jetson.text import normalise_unicode


def text_findings(clips: Clips, expected: Set[str] | None) -> Iterator[DataFinding]:
    """Empty transcripts, wrong scripts, and characters that the first split never has."""
    empty = [shown(name, fact) for name, fact in all_clips(clips) if not fact.row.text.strip()]
    yield from findings_of(
        "empty_text",
        "warning",
        empty,
        "empty transcript",
        "Right for recordings without speech (the model learns to say nothing); otherwise add the text.",
    )
    yield from _script_findings(clips, expected)
    training = training_split(clips)
    composed = {name: [unicodedata.normalize("NFC", fact.row.text) for fact in facts] for name, facts in clips.items()}
    characters = {name: set().union(*texts) for name, texts in composed.items()}
    new = [
        f"{name}: {' '.join(repr(character) for character in sorted(unseen)[:20])}"
        for name, present in characters.items()
        if training is not None and (unseen := present - characters[training])
    ]
    yield from findings_of(
        "unseen_characters",
        "note",
        new,
        f"split with characters that {training} never has",
        "Often a difference in how the splits were written (case, punctuation): write them alike.",
    )


def _script_findings(clips: Clips, expected: Set[str] | None) -> Iterator[DataFinding]:
    """Texts in another script, as severe as training takes them: an error where they are most of a split's rows."""
    wrong: list[str] = []
    mixed: list[str] = []
    refused = False
    for name, facts in clips.items():
        n_before = len(wrong)
        for fact in facts:
            allowed: Set[str] | None = expected
            if allowed is None and fact.row.language is not None:
                allowed = scripts_of_language(fact.row.language)
            found = scripts(fact.row.text)
            if allowed is None or found <= allowed:
                continue
            label = f"{shown(name, fact)}: {' '.join(sorted(found - allowed))}: {fact.row.text:.40}"
            (mixed if found & allowed else wrong).append(label)
        refused = refused or is_most(len(wrong) - n_before, len(facts))
    asked = f" (expected {' '.join(sorted(expected))})" if expected else " for its language"
    yield from findings_of(
        "wrong_script",
        "error" if refused else "warning",
        wrong,
        f"text in another script{asked}",
        "Most of a split: correct text column or language, or take a base model for that language (an .en model knows only "
        "English). Training refuses them without --other-script keep or skip."
        if refused
        else "Training keeps them: correct the rows, or leave them out with --other-script skip.",
    )
    yield from findings_of(
        "mixed_script",
        "note",
        mixed,
        "text with some letters of another script",
        "Often a loan word, sometimes a lookalike letter (Cyrillic a in an English word): look at them.",
    )


def spelling_findings(clips: Clips) -> Iterator[DataFinding]:
    """Texts whose characters are not what they look like: wrong encoding, decomposed letters, control tokens, no words."""
    broken, control, empty, decomposed = [], [], [], []
    for name, fact in all_clips(clips):
        text, label = fact.row.text, f"{shown(name, fact)}: {fact.row.text!r:.60}"
        if parts := broken_parts(text):
            broken.append(f"{shown(name, fact)}: {' '.join(map(repr, parts[:3]))} in {text!r:.60}")
        if parts := control_texts(text):
            control.append(f"{shown(name, fact)}: {' '.join(parts[:3])}")
        if text.strip() and not normalise_unicode(text):
            empty.append(label)
        if unicodedata.normalize("NFC", text) != text:
            decomposed.append(label)
    yield from findings_of(
        "broken_encoding",
        "warning",
        broken,
        "text that was read in the wrong encoding",
        "The model would learn to write these signs: write the data set again from its source as UTF-8.",
    )
    yield from findings_of(
        "control_text",
        "warning",
        control,
        "text that is written as a model's control tokens are",
        "It is learnt letter by letter, and never ends or switches anything: take it out of the transcripts.",
    )
    yield from findings_of(
        "no_words",
        "warning",
        empty,
        "text of signs only, with nothing left to score",
        "Right for what has no words; but whatever a model writes there counts as an error, so look at them.",
    )
    yield from findings_of(
        "not_nfc",
        "note",
        decomposed,
        "text not in NFC (letters and their accents apart, as Macs write file names)",
        "Nothing to do: training, scoring and the board compose the letters before they read them.",
    )


def character_findings(clips: Clips, unwritable: Callable[[str], set[str]] | None) -> Iterator[DataFinding]:
    """Characters that a model of characters has no way to write."""
    if unwritable is None:
        return
    found = [
        f"{shown(name, fact)}: {' '.join(repr(c) for c in sorted(wrong))}: {fact.row.text:.40}"
        for name, fact in all_clips(clips)
        if (wrong := unwritable(fact.row.text))
    ]
    yield from findings_of(
        "unwritable_characters",
        "error",
        found,
        "text with characters that the model cannot write",
        "Training refuses them: write them out (numbers as words), or take a base model with these characters.",
    )


def token_findings(clips: Clips, rules: LabelRules) -> Iterator[DataFinding]:
    """Transcripts beyond the model's limit, or with tokens that decoding never produces."""
    if rules.tokenise is None:
        return
    most = rules.max_text_tokens
    ids_of = {text: rules.tokenise(text) for text in {fact.row.text for _, fact in all_clips(clips)}}
    if most is not None:
        long = [
            f"{shown(name, fact)}: {len(ids_of[fact.row.text])} tokens"
            for name, fact in all_clips(clips)
            if len(ids_of[fact.row.text]) > most
        ]
        yield from findings_of(
            "label_too_long",
            "error",
            long,
            f"transcript longer than the {most} tokens the model can write",
            "Its end would be cut off. Split clip and transcript, or remove the row.",
        )
    never: list[str] = []
    for name, fact in all_clips(clips):
        ids = rules.suppressed_ids.intersection(ids_of[fact.row.text])
        if ids:
            never.append(f"{shown(name, fact)}: ids {' '.join(map(str, sorted(ids)))}: {fact.row.text:.40}")
    yield from findings_of(
        "suppressed_token",
        "warning",
        never,
        "transcript with tokens that decoding suppresses",
        "The model can never write them: each costs an error. Spell out or remove such symbols.",
    )


def crowded_findings(clips: Clips, rules: LabelRules) -> Iterator[DataFinding]:
    """Transcripts that a clip of this length cannot give."""
    if rules.fits is None or rules.tokenise is None:
        return
    crowded = [
        f"{shown(name, fact)}: {fact.duration_s:.2f} s: {fact.row.text:.40}"
        for name, fact in all_clips(clips)
        if fact.error is None
        and not (rules.unwritable and rules.unwritable(fact.row.text))
        and not rules.fits(rules.tokenise(fact.row.text), fact.duration_s)
    ]
    yield from findings_of(
        "too_short_for_text",
        "error",
        crowded,
        "clip too short for its text",
        "The model writes one character a step at most, and training refuses these. Correct the cut or the text, or remove "
        "the row.",
    )


def case_findings(clips: Clips) -> Iterator[DataFinding]:
    """Transcripts in capitals throughout."""
    texts = [fact.row.text for _, fact in all_clips(clips) if scripts(fact.row.text)]
    if texts and all(text == text.upper() and text != text.lower() for text in texts):
        yield from findings_of(
            "upper_case_text",
            "note",
            [texts[0][:60]],
            "data set with transcripts all in capitals",
            "The model would learn to write so. Lower-case them if that is not meant.",
        )
