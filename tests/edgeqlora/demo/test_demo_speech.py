"""The shipped speech is valid, small, and keeps its splits apart; the vocabulary is what we say it is."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgeqlora.demo import model_dir, phrases, speech_dir, voices

SPLITS = ("train", "dev", "test")
MIB = 1024 * 1024


def read_rows(split: str) -> list[dict]:
    lines = (speech_dir() / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_there_are_at_least_forty_phrases_and_the_ten_digits_among_them():
    assert len(set(phrases.PHRASES)) == len(phrases.PHRASES) >= 40
    assert len(phrases.DIGITS) == 10
    assert set(phrases.DIGITS) < set(phrases.PHRASES)


def test_no_normaliser_can_change_a_phrase():
    for phrase in phrases.PHRASES:
        assert phrase == " ".join(phrase.split())
        assert all(letter == " " or "a" <= letter <= "z" for letter in phrase)


def test_models_and_speech_fit_in_ten_megabytes():
    folders = (model_dir(), model_dir("wav2vec2"), speech_dir())
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert 1_000_000 < sum(path.stat().st_size for path in files) <= 10_000_000


@pytest.mark.parametrize("split", SPLITS)
def test_every_row_has_valid_fields(split):
    rows = read_rows(split)
    assert len({row["audio"] for row in rows}) == len(rows)
    for row in rows:
        assert set(row) == {"audio", "text", "speaker", "snr_db", "noise", "duration", "language"}
        assert not Path(row["audio"]).is_absolute()
        assert row["text"] in phrases.PHRASES
        assert row["language"] == "en"
        assert 0.2 <= row["duration"] <= 2.9
        assert -10 <= row["snr_db"] <= 30


@pytest.mark.parametrize("split", SPLITS)
def test_every_clip_decodes_at_16_khz_to_its_stated_duration(split):
    for row in read_rows(split):
        audio, sample_rate_hz = soundfile.read(speech_dir() / row["audio"], dtype="float32", always_2d=True)
        assert sample_rate_hz == 16000
        assert audio.shape[1] == 1
        assert audio.shape[0] / 16000 == pytest.approx(row["duration"], abs=1e-3), row["audio"]
        assert 0.01 < np.abs(audio).max() <= 1.2, row["audio"]


def test_the_splits_are_large_enough_and_say_every_phrase():
    assert len(read_rows("train")) >= 500
    assert len(read_rows("dev")) >= 80
    assert len(read_rows("test")) >= 150
    for split in ("train", "test"):
        assert {row["text"] for row in read_rows(split)} == set(phrases.PHRASES)


def test_who_speaks_in_dev_and_test_was_never_heard_before():
    heard = {split: {row["speaker"] for row in read_rows(split)} for split in SPLITS}
    heard["pretraining"] = {voice.speaker for voice in voices.PRETRAIN_VOICES}
    heard["heldout"] = {voice.speaker for voice in voices.HELDOUT_VOICES}
    for left, right in combinations(heard, 2):
        # awb and slt, two of flite's four people, are meant to be in both (see voices.py).
        allowed = {"flite-awb", "flite-slt"} if {left, right} == {"train", "pretraining"} else set()
        assert heard[left] & heard[right] == allowed, f"{left} and {right} share speakers"


def test_the_manifests_name_the_voices_of_the_script():
    for split, cast in zip(SPLITS, (voices.TRAIN_VOICES, voices.DEV_VOICES, voices.TEST_VOICES), strict=True):
        assert {row["speaker"] for row in read_rows(split)} == {voice.speaker for voice in cast}


def test_noises_for_augmentation_decode():
    paths = sorted((speech_dir() / "noise").glob("*.ogg"))
    assert 3 <= len(paths) <= 4
    for path in paths:
        audio, sample_rate_hz = soundfile.read(path, dtype="float32")
        assert sample_rate_hz == 16000
        assert 2.0 <= audio.size / 16000 <= 6.0
        assert float(np.sqrt(np.mean(audio**2))) > 0.02
