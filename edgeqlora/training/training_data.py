"""The data of a training run: read, checked, cut into windows and tokens before any weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from edgeqlora.data.augment import AugmentConfig
from edgeqlora.data.batching import choose_windows, padding_share, window_of
from edgeqlora.data.label_rules import LabelRules
from edgeqlora.data.row import Row
from edgeqlora.data.text import scripts
from edgeqlora.errors import UserError
from edgeqlora.models.family import Processor
from edgeqlora.models.parts import base_record
from edgeqlora.settings import TrainSettings, parse_windows
from edgeqlora_jetson.files import sha256_file


@dataclass
class Prepared:
    """The data of a run after all checks that need no model weights."""

    rows: list[Row]
    target_ids: list[list[int]]
    dev_rows: list[Row]
    windows_s: list[float]
    durations_s: list[float]
    n_skipped: int
    n_cut: int
    padding: dict[str, Any]
    sources: dict[str, Any]
    """sha256 of the base model's files (of a hub model: its commit), of the manifests and of ranks.json (where these are no
    files: their names)."""


def prepare(settings: TrainSettings, processor: Processor, console: Console) -> Prepared:
    """Read and check the data; raises UserError with file names before any weights are loaded."""
    from edgeqlora.data.audio import probe
    from edgeqlora.data.manifest import load_rows

    rows = load_rows(settings.train, limit=settings.limit)
    dev_rows = load_rows(settings.dev) if settings.dev else []
    if not any(row.text.strip() for row in rows):
        raise UserError(f"train={settings.train!r}: all {len(rows)} texts are empty")
    # From the files' headers, not from the manifest: a wrong duration would cut speech from its text unnoticed.
    durations = [probe(row)[1] for row in rows]
    for row in dev_rows:
        probe(row)  # a file that is missing or no audio is found now, not at the first evaluation
    native_s = processor.native_window_s
    wanted = parse_windows(settings.window_s)
    if settings.spec_augment and len(processor.feature_shape(1.0)) < 2:
        raise UserError(
            "spec_augment works on the log-mel, and this model reads samples: leave it out, or use --speed-perturb and --noise"
        )
    windows = choose_windows([min(d, native_s) for d in durations], wanted)
    if wanted is None:
        windows = sorted({min(w, native_s) for w in windows})
    if windows[-1] > native_s:
        raise UserError(f"window_s={windows[-1]:g} is longer than the model's own {native_s:g} s")
    clips = list(zip(rows, durations, strict=True))
    long = [(row, duration) for row, duration in clips if window_of(duration, windows) is None]
    if long and settings.long_clips == "error":
        names = ", ".join(f"{row.name} ({duration:.1f} s)" for row, duration in long[:3])
        raise UserError(
            f"{len(long)} of {len(rows)} clips are longer than the window of {windows[-1]:g} s: {names}"
            f"{', ...' if len(long) > 3 else ''}; pass --window-s with a longer window (at most {native_s:g}), "
            "or --long-clips skip"
        )
    clips = [(row, duration) for row, duration in clips if window_of(duration, windows) is not None]
    if not clips:
        raise UserError(f"no training clip is left: all {len(rows)} are longer than the window of {windows[-1]:g} s")
    rows, durations = [row for row, _ in clips], [duration for _, duration in clips]
    rules = processor.label_rules(settings.language)
    _verify_scripts(rows, rules)
    assert rules.tokenise is not None, "rules of a model have its tokenizer"
    tokenise, most = rules.tokenise, rules.max_text_tokens or 10**6
    room = min(most, (settings.max_label_tokens or 10**6) - len(processor.end_ids))
    if room < 1:
        raise UserError(
            f"max_label_tokens={settings.max_label_tokens} leaves no room for text and its end: give 2 or more"
        )
    _verify_writable(rows, processor)
    texts = [list(tokenise(row.text)) for row in rows]
    target_ids = [[*ids[:room], *processor.end_ids] for ids in texts]
    crowded = [clip for clip, ids in zip(clips, texts, strict=True) if not processor.fits(ids[:room], clip[1])]
    if crowded:
        short, duration = crowded[0]
        raise UserError(
            f"{len(crowded)} of {len(rows)} clips are too short for their text: {short.name} has "
            f"{duration:.2f} s for {len(short.text)} characters; the model writes at most one character "
            "a step of its output. Check the text column and the cuts, or take these rows out"
        )
    cut = [row for row, ids in zip(rows, texts, strict=True) if len(ids) > room]
    if long:
        console.print(f"  {len(long)} clips longer than {windows[-1]:g} s skipped, e.g. {long[0][0].name}")
    if cut:
        console.print(f"  {len(cut)} texts cut to {room} tokens, e.g. {cut[0].name}")
    padding = {
        "share_at_30_s": round(padding_share(durations, [30.0]), 4),
        "share_in_one_window": round(padding_share(durations, windows[-1:]), 4),
        "share": round(padding_share(durations, windows), 4),
    }
    sources: dict[str, Any] = {"base_model": base_record(settings.base_model)}
    for name in ("train", "dev", "noise", "room", "ranks"):
        source = getattr(settings, name)
        sources[name] = (sha256_file(source) if Path(source).is_file() else source) or None
    return Prepared(rows, target_ids, dev_rows, windows, durations, len(long), len(cut), padding, sources)


def _verify_writable(rows: list[Row], processor: Processor) -> None:
    """A model that writes characters of a list cannot learn a text with others."""
    found = [(row, wrong) for row in rows if (wrong := processor.unwritable(row.text))]
    if found:
        row, _ = found[0]
        missing = sorted(set().union(*(characters for _, characters in found)))
        raise UserError(
            f"{len(found)} of {len(rows)} texts have characters that {processor.source} cannot write: "
            f"{' '.join(repr(c) for c in missing[:12])}{' ...' if len(missing) > 12 else ''}, e.g. in {row.name} "
            f"({row.text[:40]!r}): write them out (numbers as words), or take a base model with these characters"
        )


def _verify_scripts(rows: list[Row], rules: LabelRules) -> None:
    """A text with letters, none of them in a script that the model writes, is in the wrong language or column."""
    if rules.expected_scripts is None:
        return
    foreign = [row for row in rows if (found := scripts(row.text)) and not found & rules.expected_scripts]
    if foreign:
        wanted = sorted(rules.expected_scripts)
        raise UserError(
            f"{len(foreign)} of {len(rows)} texts are in another script than the model writes: {foreign[0].name} has "
            f"{', '.join(sorted(scripts(foreign[0].text)))} ({foreign[0].text[:40]!r}), allowed: {', '.join(wanted)}; "
            "check the text column, --language, or take a multilingual base model"
        )


def augmentation(settings: TrainSettings) -> AugmentConfig:
    """Augmentation of the settings; SpecAugment's sizes are those of its LibriSpeech basic policy, for log-mels of 80
    bins, with two masks each (Park et al. 2019, arXiv 1904.08779, table 1, LD), and warps scaled to short clips."""
    masks: dict[str, int] = {}
    if settings.spec_augment:
        masks = {
            "time_warp_frames": 5,
            "n_frequency_masks": 2,
            "frequency_mask_bins": 27,
            "n_time_masks": 2,
            "time_mask_frames": 100,
        }
    return AugmentConfig(
        speed_factors=tuple(settings.speed_perturb),
        noise_probability=settings.noise_probability if settings.noise else 0.0,
        noise_snr_db_min=settings.noise_snr_db[0],
        noise_snr_db_max=settings.noise_snr_db[1],
        room_probability=settings.room_probability if settings.room else 0.0,
        **masks,
    )
