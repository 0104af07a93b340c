"""Make the demo's speech again: `python -m edgeqlora.demo.make_speech OUT` (needs espeak-ng and flite).

Two parts: `pretrain` (thousands of clean utterances, WAV; only to pre-train the base model) and `demo` (the
noisy train, dev and test clips and the noises that are shipped). Every clip draws from its own random stream,
seeded by (seed, split, index), so the result does not depend on how many workers make it.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeqlora.demo import acoustics, phrases, voices
from edgeqlora.demo.synthesise import SAMPLE_RATE_HZ, Manner, check_programs, synthesise
from edgeqlora.errors import UserError

SEED = 2024
MAX_CLIP_S = 2.9
NOISE_CLIP_S = 4.0
BED_S = 10.0
OPUS_COMPRESSION = 0.95  # about 16 kbit/s: the whole of the shipped speech fits in 4 MB
BEDS_PER_KIND = 4


class Split(NamedTuple):
    """One split of the shipped speech: its random stream, its voices, how many clips."""

    name: str
    stream: int
    voices: tuple[voices.Voice, ...]
    n_clips: int


class Difficulty(NamedTuple):
    """How far the demo's domain lies from the clean speech of pre-training."""

    snr_db: tuple[float, float] = (12.0, 22.0)
    rt60_s: tuple[float, float] = (0.1, 0.35)
    wet: tuple[float, float] = (0.05, 0.4)
    band_hz: tuple[float, float] = (250.0, 4000.0)
    rate: tuple[float, float] = (0.9, 1.2)
    pitch: tuple[float, float] = (0.8, 1.25)


DEMO_SPLITS = (
    Split("train", 1, voices.TRAIN_VOICES, 840),
    Split("dev", 2, voices.DEV_VOICES, 100),
    Split("test", 3, voices.TEST_VOICES, 200),
)
PRETRAIN_SPLITS = (
    Split("train", 11, voices.PRETRAIN_VOICES, 14000),
    Split("heldout", 12, voices.HELDOUT_VOICES, 200),
)
DIFFICULTY = Difficulty()


class Clip(NamedTuple):
    """Audio float32 (n_samples,) and the manifest fields that go with it."""

    audio: np.ndarray
    fields: dict[str, Any]


def fit(audio: np.ndarray, lead_s: float, tail_s: float) -> np.ndarray:
    """Silence before and after the speech (n_samples,), never past MAX_CLIP_S."""
    lead, tail = int(lead_s * SAMPLE_RATE_HZ), int(tail_s * SAMPLE_RATE_HZ)
    return np.pad(audio, (lead, tail))[: int(MAX_CLIP_S * SAMPLE_RATE_HZ)].astype(np.float32)


def say_clean(split: Split, seed: int, index: int) -> Clip:
    """One clean utterance for pre-training; texts too long for the window are drawn again."""
    rng = np.random.default_rng([seed, split.stream, index])
    words = tuple(sorted({*phrases.vocabulary(), *phrases.COMMON_WORDS}))
    voice = split.voices[index % len(split.voices)]
    while True:
        text = phrases.draw_text(rng, words, phrase_share=1.0 if split.name == "heldout" else 0.35)
        speech = synthesise(voice, text, Manner(rng.uniform(0.85, 1.25), rng.uniform(0.6, 1.5)))
        if speech.size <= (MAX_CLIP_S - 0.1) * SAMPLE_RATE_HZ:
            break
    audio = acoustics.scale_to_rms(fit(speech, rng.uniform(0.02, 0.3), rng.uniform(0.05, 0.3)), 0.06)
    return Clip(audio, {"text": text, "speaker": voice.speaker, "snr_db": None, "noise": None})


class NoiseBank:
    """Ten-second beds of every kind of noise for one split; clips cut their noise out of them."""

    def __init__(self, split: Split, seed: int):
        rng = np.random.default_rng([seed, 100 + split.stream])
        n_samples = int(BED_S * SAMPLE_RATE_HZ)
        self.beds = {
            kind: [make(rng, n_samples) for _ in range(BEDS_PER_KIND)] for kind, make in acoustics.NOISES.items()
        }
        self.beds["babble"] = [make_babble(rng, n_samples) for _ in range(BEDS_PER_KIND)]

    def cut(self, rng: np.random.Generator, n_samples: int) -> tuple[str, np.ndarray]:
        """A kind of noise and n_samples of it."""
        kind = sorted(self.beds)[int(rng.integers(0, len(self.beds)))]
        bed = self.beds[kind][int(rng.integers(0, BEDS_PER_KIND))]
        start = int(rng.integers(0, bed.size - n_samples + 1))
        return kind, bed[start : start + n_samples]


def make_babble(rng: np.random.Generator, n_samples: int, n_talkers: int = 6) -> np.ndarray:
    """Babble of `n_talkers` pre-training voices that say random everyday words, shape (n_samples,)."""
    talkers = []
    for _ in range(n_talkers):
        voice = voices.PRETRAIN_VOICES[int(rng.integers(0, len(voices.PRETRAIN_VOICES)))]
        chosen = rng.choice(phrases.COMMON_WORDS, size=12)
        talkers.append(
            synthesise(voice, " ".join(map(str, chosen)), Manner(rng.uniform(0.9, 1.1), rng.uniform(0.7, 1.3)))
        )
    return acoustics.babble(rng, talkers, n_samples)


def say_noisy(split: Split, seed: int, bank: NoiseBank, difficulty: Difficulty, index: int) -> Clip:
    """One clip of the demo: a held-out voice in a small room with noise. Phrases and voices take turns."""
    rng = np.random.default_rng([seed, split.stream, index])
    text = phrases.PHRASES[index % len(phrases.PHRASES)]
    # One step further each time all phrases were said: every voice says every phrase sooner or later.
    voice = split.voices[(index + index // len(phrases.PHRASES)) % len(split.voices)]
    rate = rng.uniform(*difficulty.rate)
    while True:
        speech = synthesise(voice, text, Manner(rate, rng.uniform(*difficulty.pitch)))
        if speech.size <= (MAX_CLIP_S - 0.35) * SAMPLE_RATE_HZ:
            break
        rate *= 1.15
    audio = fit(speech, rng.uniform(0.05, 0.15), rng.uniform(0.08, 0.2))
    audio = acoustics.reverberate(rng, audio, rng.uniform(*difficulty.rt60_s), rng.uniform(*difficulty.wet))
    kind, noise = bank.cut(rng, audio.size)
    snr_db = round(float(rng.uniform(*difficulty.snr_db)), 1)
    heard = acoustics.intercom(acoustics.mix_at_snr(audio, noise, snr_db), *difficulty.band_hz)
    audio = acoustics.scale_to_rms(heard, rng.uniform(0.04, 0.1))
    return Clip(audio, {"text": text, "speaker": voice.speaker, "snr_db": snr_db, "noise": kind})


def write_clip(path: Path, audio: np.ndarray) -> None:
    """16 kHz mono: Opus in Ogg for the shipped speech, PCM16 for WAV. Peaks over 0.95 are scaled."""
    import soundfile

    peak = float(np.abs(audio).max())
    audio = audio * (0.95 / peak) if peak > 0.95 else audio
    subtype = "OPUS" if path.suffix == ".ogg" else "PCM_16"
    quality = {"compression_level": OPUS_COMPRESSION} if subtype == "OPUS" else {}
    soundfile.write(path, audio, SAMPLE_RATE_HZ, subtype=subtype, **quality)


def write_split(folder: Path, split: Split, suffix: str, say: Callable[[int], Clip], workers: int) -> None:
    """Write the split's clips and, last, its manifest `folder/<name>.jsonl`."""
    (folder / "audio" / split.name).mkdir(parents=True, exist_ok=True)

    def make(index: int) -> dict[str, Any]:
        clip = say(index)
        relative = f"audio/{split.name}/{index:05d}{suffix}"
        write_clip(folder / relative, clip.audio)
        duration = round(clip.audio.size / SAMPLE_RATE_HZ, 4)
        return {"audio": relative, **clip.fields, "duration": duration, "language": "en"}

    started = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        rows = list(progress(pool.map(make, range(split.n_clips)), split))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{split.name}.jsonl").write_text(text, encoding="utf-8")
    minutes = sum(row["duration"] for row in rows) / 60
    wall_s = time.monotonic() - started
    print(f"{folder / split.name}.jsonl: {len(rows)} clips, {minutes:.1f} minutes, {wall_s:.0f} s")


def progress(rows: Iterator[dict[str, Any]], split: Split) -> Iterator[dict[str, Any]]:
    """The same rows, with a line on the terminal every 1000."""
    for n_done, row in enumerate(rows, 1):
        if n_done % 1000 == 0:
            print(f"  {split.name}: {n_done} of {split.n_clips}", flush=True)
        yield row


def make_pretrain(folder: Path, seed: int = SEED, workers: int = 2, n_clips: int | None = None) -> None:
    """Write the clean speech of pre-training: train.jsonl, heldout.jsonl and WAV audio."""
    for split in PRETRAIN_SPLITS:
        split = split._replace(n_clips=min(split.n_clips, n_clips or split.n_clips))
        write_split(folder, split, ".wav", functools.partial(say_clean, split, seed), workers)


def make_demo(folder: Path, seed: int = SEED, workers: int = 2, n_clips: int | None = None) -> None:
    """Write the shipped speech: train, dev and test manifests, Ogg audio, and the clips in noise/."""
    for split in DEMO_SPLITS:
        split = split._replace(n_clips=min(split.n_clips, n_clips or split.n_clips))
        bank = NoiseBank(split, seed)
        write_split(folder, split, ".ogg", functools.partial(say_noisy, split, seed, bank, DIFFICULTY), workers)
    write_noises(folder / "noise", seed)


def write_noises(folder: Path, seed: int) -> None:
    """Four noises of NOISE_CLIP_S seconds for augmentation, from a stream that no split uses."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 200])
    n_samples = int(NOISE_CLIP_S * SAMPLE_RATE_HZ)
    clips = {kind: acoustics.NOISES[kind](rng, n_samples) for kind in ("pink", "fan", "clatter")}
    clips["babble"] = make_babble(rng, n_samples)
    for kind, audio in clips.items():
        write_clip(folder / f"{kind}.ogg", acoustics.scale_to_rms(audio, 0.08))


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and make what it asks for."""
    parser = argparse.ArgumentParser(prog="python -m edgeqlora.demo.make_speech", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write: OUT/pretrain and OUT/demo")
    parser.add_argument("--part", choices=("all", "pretrain", "demo"), default="all")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--workers", type=int, default=2, help="how many programs run at once")
    parser.add_argument("--limit", type=int, default=None, help="at most this many clips a split (to try it out)")
    options = parser.parse_args(arguments)
    try:
        check_programs()
        if options.part in ("all", "demo"):
            make_demo(options.out / "demo", options.seed, options.workers, options.limit)
        if options.part in ("all", "pretrain"):
            make_pretrain(options.out / "pretrain", options.seed, options.workers, options.limit)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.out}")
    print(f"next: python -m edgeqlora.demo.pretrain --speech {options.out}/pretrain --out MODEL")
    return 0


if __name__ == "__main__":
    sys.exit(main())
