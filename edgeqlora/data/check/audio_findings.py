"""Findings about audio: files, levels, lengths, duplicates, voices, formats."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator

from edgeqlora.data.agreement import is_far
from edgeqlora.data.batching import window_of
from edgeqlora.data.check.clip_facts import ClipFacts, Clips, Fault, all_clips, decoded_clips, shown, training_split
from edgeqlora.data.check.report import DataFinding, Severity, findings_of

# Recorders clip single samples in good speech; beyond this share it is audible.
MOST_CLIPPED_SHARE = 0.001
# -70 dBFS in the loudest 60 ms, 10 steps of 16 bits: the soft sounds of speech are 30 dB below its loud ones, which is
# less than a third of a step there. The quietest clip of the Free Spoken Digit Dataset is at -48 dBFS.
SILENT_LEVEL = 10 ** (-70 / 20)
DURATION_TOLERANCE_S = 0.1


def audio_findings(clips: Clips) -> Iterator[DataFinding]:
    """Audio that cannot be read, is silent under a transcript, or whose level is wrong."""
    yield from findings_of(
        "undecodable_audio",
        "error",
        _faulty(clips, "undecodable"),
        "audio missing or not decodable",
        "Correct the paths or the files, or remove these rows.",
    )
    yield from findings_of(
        "unscaled_audio",
        "error",
        _faulty(clips, "not scaled"),
        "not scaled: integers written as float samples",
        "Every command refuses these files. Write them again with samples from -1 to 1.",
    )
    silent = [
        f"{shown(name, fact)}: {_decibel(fact.level)}"
        for name, fact in decoded_clips(clips)
        if fact.level < SILENT_LEVEL and fact.row.text.strip()
    ]
    yield from findings_of(
        "silent_audio",
        "error",
        silent,
        "silent or nearly so, but with a transcript",
        "The model would learn to invent text. Remove these rows, or empty their text if silence is meant.",
    )
    clipped = [
        f"{shown(name, fact)}: {100 * fact.clipped_share:.2f} % of samples at full scale"
        for name, fact in decoded_clips(clips)
        if fact.clipped_share > MOST_CLIPPED_SHARE
    ]
    yield from findings_of(
        "clipped_audio",
        "warning",
        clipped,
        "overdriven (samples cut off at full scale)",
        "Listen to them; record again with less gain or remove them if they are distorted.",
    )
    beyond = [
        f"{shown(name, fact)}: {100 * fact.beyond_one_share:.2f} % of samples, up to {fact.beyond_one_peak:.2f}"
        for name, fact in decoded_clips(clips)
        if fact.beyond_one_share > 0.0
    ]
    yield from findings_of(
        "float_beyond_one",
        "warning",
        beyond,
        "float samples beyond 1: they are clipped, here and on the board",
        "Divide the samples of each file by their peak and write it again.",
    )


def channel_findings(clips: Clips) -> Iterator[DataFinding]:
    """Channels that carry nothing, and channels that cancel each other."""
    dead = [
        f"{shown(name, fact)}: {fact.n_dead_channels} of {fact.n_channels} channels"
        for name, fact in decoded_clips(clips)
        if fact.n_dead_channels
    ]
    yield from findings_of(
        "dead_channel",
        "note",
        dead,
        "a channel is constant",
        "It is left out of the mean of the channels, here and on the board: the level of the others stays.",
    )
    cancelling = [shown(name, fact) for name, fact in decoded_clips(clips) if fact.cancels]
    yield from findings_of(
        "channels_cancel",
        "warning",
        cancelling,
        "channels that cancel each other when they are averaged",
        "One is the other upside down, as from a balanced cable: keep one channel and write the file again.",
    )


def length_findings(clips: Clips, window_s: float | None) -> Iterator[DataFinding]:
    """Clips beyond the window, and durations that the manifest has wrong."""
    if window_s is not None:
        training = training_split(clips)
        in_training: list[str] = []
        in_evaluation: list[str] = []
        for name, fact in decoded_clips(clips):
            if window_of(fact.duration_s, [window_s]) is None:
                found = in_training if name == training else in_evaluation
                found.append(f"{shown(name, fact)}: {fact.duration_s:.2f} s")
        yield from findings_of(
            "longer_than_window",
            "error",
            in_training,
            f"longer than the window of {window_s:g} s",
            "The encoder would not see the rest. Take a longer window, cut the clips, or remove them.",
        )
        yield from findings_of(
            "longer_than_window_in_evaluation",
            "warning",
            in_evaluation,
            f"longer than the window of {window_s:g} s, outside training",
            "They are recognised in pieces, cut at quiet places, which costs some accuracy at the cuts.",
        )
    short = _faulty(clips, "cut off") + [
        f"{shown(name, fact)}: header says {fact.header_s:.2f} s, {fact.duration_s:.2f} s decode"
        for name, fact in decoded_clips(clips)
        if fact.header_s - fact.duration_s > DURATION_TOLERANCE_S
    ]
    yield from findings_of(
        "truncated_audio",
        "error",
        short,
        "audio shorter than its own header says",
        "A download or copy that broke off: fetch the file again, or remove the row.",
    )
    endless = [shown(name, fact) for name, fact in decoded_clips(clips) if fact.lacks_end]
    yield from findings_of(
        "ogg_without_end",
        "warning",
        endless,
        "Ogg without its last page: perhaps cut off",
        "Compare the end with the text. If speech is missing, fetch the file again, else write it again.",
    )
    wrong: dict[Severity, list[str]] = {"error": [], "warning": []}
    for name, fact in decoded_clips(clips):
        claimed = fact.row.duration
        if claimed is not None and abs(claimed - fact.duration_s) > DURATION_TOLERANCE_S:
            found = wrong["error" if is_far(claimed, fact.duration_s) else "warning"]
            found.append(f"{shown(name, fact)}: manifest says {claimed:.2f} s, audio has {fact.duration_s:.2f} s")
    yield from findings_of(
        "far_duration",
        "error",
        wrong["error"],
        "duration far from that of the audio",
        "Training refuses these: a cut is written as start and end. Correct the field, or remove it to use the whole file.",
    )
    yield from findings_of(
        "wrong_duration",
        "warning",
        wrong["warning"],
        f"duration off by more than {DURATION_TOLERANCE_S:g} s",
        "A truncated file, or an old manifest: compare the audio with its text, then correct the field.",
    )


def duplicate_findings(clips: Clips) -> Iterator[DataFinding]:
    """The same recording twice, by its decoded samples, whatever the files are called."""
    groups: dict[str, list[tuple[str, ClipFacts]]] = defaultdict(list)
    for name, fact in decoded_clips(clips):
        # All silent clips of one length are the same samples, which says nothing about the recording.
        if fact.level >= SILENT_LEVEL:
            groups[fact.sha256].append((name, fact))
    across: list[str] = []
    within: list[str] = []
    for group in groups.values():
        if len(group) < 2:
            continue
        label = " = ".join(shown(name, fact) for name, fact in group[:3])
        if len(group) > 3:
            label += f" = {len(group) - 3} more"
        if len({fact.row.text for _, fact in group}) > 1:
            label += " (with different text)"
        (across if len({name for name, _ in group}) > 1 else within).append(label)
    yield from findings_of(
        "duplicate_across_splits",
        "error",
        across,
        "recording present in more than one split",
        "The model would be tested on what it was trained on. Keep each recording in one split.",
    )
    yield from findings_of(
        "duplicate_within_split",
        "warning",
        within,
        "recording present more than once in a split",
        "It counts double in training and in every figure. Keep one row of each.",
    )


def speaker_findings(clips: Clips) -> Iterator[DataFinding]:
    """Speakers that are heard in more than one split."""
    splits_of: dict[str, Counter[str]] = defaultdict(Counter)
    for name, fact in all_clips(clips):
        if fact.row.speaker is not None:
            splits_of[fact.row.speaker][name] += 1
    shared = [
        f"speaker {speaker}: " + ", ".join(f"{n} rows in {name}" for name, n in counts.items())
        for speaker, counts in splits_of.items()
        if len(counts) > 1
    ]
    yield from findings_of(
        "speaker_overlap",
        "warning",
        shared,
        "speaker present in more than one split",
        "Figures on such a split are not figures on unseen voices: say so, or split by speaker.",
    )


def format_findings(clips: Clips) -> Iterator[DataFinding]:
    """Files of different sample rates or channel counts."""
    for name, unit, value_of, what in (
        ("mixed_sample_rates", "Hz", lambda fact: fact.sample_rate_hz, "sample rate"),
        ("mixed_channels", "channels", lambda fact: fact.n_channels, "channel count"),
    ):
        counts = Counter(value_of(fact) for _, fact in decoded_clips(clips))
        if len(counts) > 1:
            label = [f"{value} {unit}: {n} files" for value, n in sorted(counts.items())]
            yield from findings_of(
                name,
                "note",
                label,
                f"different {what}",
                "All are read as 16 kHz mono; but a split recorded otherwise than the rest sounds different.",
            )


def _faulty(clips: Clips, fault: Fault) -> list[str]:
    return [f"{name}: {fact.error}" for name, fact in all_clips(clips) if fact.error and fact.fault == fault]


def _decibel(level: float) -> str:
    return "no sound at all" if level == 0.0 else f"{20 * math.log10(level):.0f} dBFS"
