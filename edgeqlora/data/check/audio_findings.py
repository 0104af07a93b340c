"""Findings about audio: files, levels, lengths, duplicates, voices, formats."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from edgeqlora.data.check.clip_facts import ClipFacts, Clips, all_clips, decoded_clips, shown, training_split
from edgeqlora.data.check.report import DataFinding, findings_of

# Recorders clip single samples in good speech; beyond this share it is audible.
MOST_CLIPPED_SHARE = 0.001
DURATION_TOLERANCE_S = 0.1


def audio_findings(clips: Clips) -> Iterator[DataFinding]:
    """Audio that cannot be decoded, is silent under a transcript, or is overdriven."""
    bad = [f"{name}: {fact.error}" for name, fact in all_clips(clips) if fact.error]
    yield from findings_of(
        "undecodable_audio",
        "error",
        bad,
        "audio missing or not decodable",
        "Correct the paths or the files, or remove these rows.",
    )
    silent = [shown(name, fact) for name, fact in decoded_clips(clips) if fact.peak == 0.0 and fact.row.text.strip()]
    yield from findings_of(
        "silent_audio",
        "error",
        silent,
        "silent (every sample 0) but with a transcript",
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


def length_findings(clips: Clips, window_s: float | None) -> Iterator[DataFinding]:
    """Clips beyond the window, and durations that the manifest has wrong."""
    if window_s is not None:
        training = training_split(clips)
        in_training: list[str] = []
        in_evaluation: list[str] = []
        for name, fact in decoded_clips(clips):
            # Durations are whole samples divided by a rate: a little slack for the rounding.
            if fact.duration_s > window_s + 5e-5:
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
    short = [
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
    wrong = [
        f"{shown(name, fact)}: manifest says {fact.row.duration:.2f} s, audio has {fact.duration_s:.2f} s"
        for name, fact in decoded_clips(clips)
        if fact.row.duration is not None and abs(fact.row.duration - fact.duration_s) > DURATION_TOLERANCE_S
    ]
    yield from findings_of(
        "wrong_duration",
        "warning",
        wrong,
        f"duration off by more than {DURATION_TOLERANCE_S:g} s",
        "A truncated file, or an old manifest: compare the audio with its text, then correct the field.",
    )


def duplicate_findings(clips: Clips) -> Iterator[DataFinding]:
    """The same recording twice, by its decoded samples, whatever the files are called."""
    groups: dict[str, list[tuple[str, ClipFacts]]] = defaultdict(list)
    for name, fact in decoded_clips(clips):
        # All silent clips of one length are the same samples, which says nothing about the recording.
        if fact.peak > 0.0:
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
