"""The data of a training run: read, checked, cut into windows and tokens before any weights are loaded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from edgeqlora.data.agreement import read_durations, spoken_language, unread_fields, verify_apart
from edgeqlora.data.audio import load_audio, probe
from edgeqlora.data.augment import AugmentConfig
from edgeqlora.data.batching import choose_windows, padding_share, window_of
from edgeqlora.data.dataset import Recordings, load_recordings
from edgeqlora.data.label_rules import LabelRules
from edgeqlora.data.manifest import load_for
from edgeqlora.data.row import Row
from edgeqlora.data.silence import without_silence
from edgeqlora.data.text import in_other_script, is_most, scripts
from edgeqlora.errors import UserError
from edgeqlora.models.clips import as_clip
from edgeqlora.models.family import Learner, Processor
from edgeqlora.models.parts import base_record
from edgeqlora.settings import TrainSettings, parse_windows
from edgeqlora.training.general import Replay, load_canary, prepare_replay
from edgeqlora.training.partial_run import data_hashes, sha256_lines
from edgeqlora_jetson.screen import visible


@dataclass
class Prepared:
    """The data of a run after all checks that need no model weights."""

    rows: list[Row]
    target_ids: list[list[int]]
    dev_rows: list[Row]
    language: str | None
    """What a multilingual model is told: the setting, or what all rows name."""
    tokens_per_s: float
    """Most label tokens in a second of any clip of train and dev: what limits of decoding follow from."""
    windows_s: list[float]
    durations_s: list[float]
    n_skipped: int
    n_cut: int
    n_empty: int
    """Rows whose text is empty: nobody speaks in them."""
    n_other_script: int
    """Rows in another script than the language's, kept or skipped."""
    padding: dict[str, Any]
    sources: dict[str, Any]
    """sha256 of the base model's files (of a hub model: its commit), and those of partial_run.data_hashes."""
    noises: Recordings
    rooms: Recordings
    silence: dict[str, Any] | None
    """What cutting silence did to train and dev; None: nothing was cut."""
    canary_rows: list[Row]
    replay: Replay | None

    @property
    def audio_folders(self) -> set[str]:
        """Folders that the run reads audio from."""
        replay = self.replay.rows if self.replay else []
        rows = (*self.rows, *self.dev_rows, *self.noises.rows, *self.rooms.rows, *self.canary_rows, *replay)
        return {os.path.dirname(row.audio) for row in rows}


def prepare(settings: TrainSettings, processor: Processor, console: Console) -> Prepared:
    """Read and check the data; raises UserError with file names before any weights are loaded."""
    every = rows = load_for("train", settings.train, settings.split, settings.limit)
    dev_rows = load_for("dev", settings.dev, settings.dev_split) if settings.dev else []
    if not any(row.text.strip() for row in rows):
        raise UserError(f"train={settings.train!r}: all {len(rows)} texts are empty")
    # From the files' headers: what is missing or no audio is found now, not at the first evaluation.
    durations, dev_durations = read_durations(rows), read_durations(dev_rows)
    silence = None
    if settings.skip_silence:
        (rows, dev_rows), silence = _without_silence([rows, dev_rows], console)
        durations, dev_durations = ([probe(row)[1] for row in of] for of in (rows, dev_rows))
    n_same = verify_apart(rows, dev_rows)
    if n_same:
        console.print(f"  {n_same} of {len(dev_rows)} dev clips say a text that is in the training data too")
    language, remark = spoken_language([*rows, *dev_rows], settings.language, processor.label_rules())
    for line in (remark, unread_fields([*rows, *dev_rows])):
        if line:
            console.print(f"  {line}")
    native_s = processor.native_window_s
    wanted = parse_windows(settings.window_s)
    if settings.spec_augment and len(processor.feature_shape(1.0)) < 2:
        raise UserError(
            "spec_augment works on the log-mel, and this model reads samples: leave it out, or use --speed-perturb and --noise"
        )
    slowest = min([1.0, *settings.speed_perturb])
    windows = choose_windows([min(d / slowest, native_s) for d in durations], wanted)
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
    rules = processor.label_rules(language)
    clips, n_other_script = _of_script(clips, rules, settings.other_script, console)
    rows, durations = [row for row, _ in clips], [duration for _, duration in clips]
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
    labels = [*texts, *(tokenise(row.text) for row in dev_rows)]
    rate = max(
        len(ids) / max(duration, 1.0) for ids, duration in zip(labels, [*durations, *dev_durations], strict=True)
    )
    if long:
        console.print(f"  {len(long)} clips longer than {windows[-1]:g} s skipped, e.g. {visible(long[0][0].name)}")
    if cut:
        console.print(f"  {len(cut)} texts cut to {room} tokens, e.g. {visible(cut[0].name)}")
    padding = {
        "share_at_30_s": round(padding_share(durations, [30.0]), 4),
        "share_in_one_window": round(padding_share(durations, windows[-1:]), 4),
        "share": round(padding_share(durations, windows), 4),
    }
    sources: dict[str, Any] = {"base_model": base_record(settings.base_model)}
    canary_rows, replay = load_canary(settings), prepare_replay(settings, processor, dev_rows, console.print)
    if canary_rows:
        verify_apart([*rows, *(replay.rows if replay else [])], canary_rows)
    noises, rooms = load_recordings("noise", settings.noise), load_recordings("room", settings.room)
    sources |= data_hashes(settings, {"train": every, "dev": dev_rows, "noise": noises.rows, "room": rooms.rows})
    if silence:
        heard = [*rows, *dev_rows, *canary_rows, *(replay.rows if replay else [])]
        sources["speech_in_the_clips"] = sha256_lines([repr((fingerprint(row), row.kept)) for row in heard])
    sources |= data_hashes(settings, {"canary": canary_rows, "replay": replay.rows if replay else []})
    return Prepared(
        rows,
        target_ids,
        dev_rows,
        language,
        round(rate, 2),
        windows,
        durations,
        len(long),
        len(cut),
        sum(not ids for ids in texts),
        n_other_script,
        padding,
        sources,
        noises,
        rooms,
        silence,
        canary_rows,
        replay,
    )


def _without_silence(sets: Sequence[list[Row]], console: Console) -> tuple[list[list[Row]], dict[str, Any]]:
    """Training and dev rows as they are heard, and what was cut. A training clip without speech teaches nothing.

    Raises UserError where no training clip has speech.
    """
    n_clips = sum(map(len, sets))
    console.print(f"  listening for speech in {n_clips} clips")
    (train, of_train), (dev, of_dev) = map(without_silence, sets)
    for name, silence in (("train", of_train), ("dev", of_dev)):
        if silence.n_clips:
            console.print(f"  {name}: {silence}")
    if silent := [row for row in train if row.kept == ()]:
        if len(silent) == len(train):
            raise UserError(
                f"skip_silence: no speech was found in any of the {len(train)} training clips: leave it out"
            )
        console.print(f"  {len(silent)} training clips without speech left out, e.g. {visible(silent[0].name)}")
    kept = [row for row in train if row.kept != ()]
    return [kept, dev], {"train": of_train.to_plain(), "dev": of_dev.to_plain() if dev else None}


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


def _of_script(
    clips: list[tuple[Row, float]], rules: LabelRules, what: str, console: Console
) -> tuple[list[tuple[Row, float]], int]:
    """The clips to train on, and how many texts have letters, but none of a script that the model writes.

    what: the setting other_script. Raises UserError where they are not to be had: all of them with `error`, most of the
    rows with `auto` (the language or the column is wrong then).
    """
    wanted = rules.expected_scripts
    foreign = [clip for clip in clips if wanted and in_other_script(clip[0].text, wanted)]
    if not foreign or wanted is None:
        return clips, 0
    shown = [f"{row.name} has {', '.join(sorted(scripts(row.text)))} ({row.text[:40]!r})" for row, _ in foreign[:2]]
    found = (
        f"{len(foreign)} of {len(clips)} texts are in another script than the model writes: {'; '.join(shown)}, "
        f"allowed: {', '.join(sorted(wanted))}"
    )
    if what == "error" or (what == "auto" and is_most(len(foreign), len(clips))):
        raise UserError(
            f"{found}; check the text column, --language, or take a multilingual base model; "
            "--other-script keep trains on these rows, --other-script skip leaves them out"
        )
    if what != "skip":
        console.print(f"  {found}; kept (--other-script skip leaves them out)", markup=False)
        return clips, len(foreign)
    if len(foreign) == len(clips):
        raise UserError(f"{found}; no row is left: check the text column and --language")
    console.print(f"  {found}; skipped", markup=False)
    return [clip for clip in clips if not in_other_script(clip[0].text, wanted)], len(foreign)


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


def fingerprint(row: Row) -> str:
    """Of what an utterance is: its file's name, its cut and its text, wherever the data set lies."""
    return hashlib.sha256(f"{Path(row.audio).name}|{row.start}|{row.end}|{row.text}".encode()).hexdigest()


def drawn(rows: Sequence[Row], n: int) -> list[int]:
    """Indices of n rows, chosen and ordered by their fingerprints: the same clips from the same set in any order."""
    return sorted(range(len(rows)), key=lambda i: fingerprint(rows[i]))[:n]


def calibration_clips(learner: Learner, data: Prepared, chosen: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Training clips one by one, as they are, for a look at the base model: {"name", "n_valid", "batch" (of one)}."""
    processor, decoder = learner.processor, learner.decoder(data.windows_s, data.language, None)
    for i in chosen:
        audio = load_audio(data.rows[i])
        window = window_of(data.durations_s[i], data.windows_s)
        assert window is not None, "clips that fit no window were left out"
        yield as_clip(processor, decoder, data.rows[i].name, audio, window, data.target_ids[i])
