"""--skip-silence as a user types it: train, evaluate, merge and export on embedded speech between silences."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgeqlora.data import silence
from edgeqlora.data.audio import load_audio
from edgeqlora.data.manifest import load_rows
from edgeqlora.data.row import Row
from edgeqlora.demo import model_dir
from edgeqlora.evaluation.recognise import Recogniser
from edgeqlora.models.family import Transcription, load_learner
from edgeqlora_jetson.transcribe import Segment

HUSH_S = 2.0
"""Silence before and after each word."""


KNOWN = [
    "one",
    "nine",
    "open the window",
    "make it colder",
    "volume up",
    "volume down",
    "what time is it",
    "go forward",
    "go back",
    "wait for me",
    "move the arm lower",
    "take a picture",
]
"""What the embedded model recognises of the first test voice before it is tuned."""


def write_set(folder: Path, split: str, texts: list[str]) -> None:
    """NAME.jsonl: words between silences and a clip without speech; NAME-plain.jsonl: the same words alone."""
    rng = np.random.default_rng(0)

    def hush(seconds: float) -> np.ndarray:
        return (0.0005 * rng.standard_normal(int(16_000 * seconds))).astype(np.float32)

    rows = []
    spoken = load_rows(model_dir().with_name("speech") / f"{split}.jsonl", limit=60)
    for row in [next(row for row in spoken if row.text == text) for text in texts]:
        word, name = load_audio(row), f"{split}-{len(rows)}"
        soundfile.write(folder / f"{name}.wav", np.concatenate([hush(HUSH_S), word, hush(HUSH_S)]), 16_000)
        soundfile.write(folder / f"{name}-plain.wav", word, 16_000)
        rows.append({"audio": f"{name}.wav", "text": row.text, "speaker": row.speaker})
    plain = [{**row, "audio": row["audio"].replace(".wav", "-plain.wav")} for row in rows]
    soundfile.write(folder / f"{split}-none.wav", hush(3.0), 16_000)
    rows.append({"audio": f"{split}-none.wav", "text": "", "speaker": "none"})
    for name, of in ((split, rows), (f"{split}-plain", plain)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of))


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("silence")
    for split, n in (("train", 12), ("dev", 8), ("test", 12)):
        write_set(folder, split, KNOWN[:n])
    return folder


@pytest.fixture(scope="module")
def adapter(sets, command, tmp_path_factory) -> tuple[Path, str]:
    """An adapter trained with --skip-silence, and what training said."""
    output = tmp_path_factory.mktemp("run") / "adapter"
    code, said = command(
        "train", "-m", model_dir(), "--train", sets / "train.jsonl", "--dev", sets / "dev.jsonl", "-o", output,
        "--steps", 4, "--batch-size", 4, "--cache", output.parent / "cache", "--skip-silence",
    )  # fmt: skip
    assert code == 0, said
    return output, said


def evaluated(command, source, data, *flags) -> tuple[dict, dict[str, str], str]:
    """(report, text by clip, all that was printed)."""
    report = Path(data).parent / "report.json"
    code, said = command("evaluate", source, "-d", data, "-o", report, *flags)
    assert code == 0, said
    lines = [json.loads(line) for line in report.with_suffix(".jsonl").read_text().splitlines()]
    texts = {Path(line["audio"]).name.replace("-plain", ""): line["hypothesis"] for line in lines}
    return json.loads(report.read_text()), texts, said


def test_words_between_silences_are_recognised_in_a_window_that_holds_the_words_alone(sets, command):
    plain, alone, _ = evaluated(command, model_dir(), sets / "test-plain.jsonl", "--window-s", "2")
    assert plain["silence"] is None
    assert plain["false_words"]["value"] is None
    report, cut, said = evaluated(command, model_dir(), sets / "test.jsonl", "--window-s", "2", "--skip-silence")
    whole, _, _ = evaluated(command, model_dir(), sets / "test.jsonl", "--window-s", "2")
    wer = [one["wer"]["basic-unicode"]["value"] for one in (plain, report, whole)]
    assert wer[:2] == [0.0, 0.0]
    assert wer[2] > 50  # words are invented in the silences
    assert cut == {**alone, "test-none.wav": ""}
    assert (report["cut_clips"], whole["cut_clips"]) == (0, 13)
    assert [one["false_words"]["n_clips"] for one in (report, whole)] == [1, 1]
    assert report["false_words"]["value"] == 0.0 < whole["false_words"]["value"]
    figures = report["silence"]
    assert (figures["n_clips"], figures["n_without_speech"]) == (13, 1)
    recordings_s = sum(soundfile.info(str(sets / f"test-{i}.wav")).duration for i in [*range(12), "none"])
    assert figures["audio_s"] == pytest.approx(recordings_s, abs=0.01) == report["data"]["audio_s"]
    assert 60 < figures["removed"]["value"] < 90
    compared = figures["compared"]
    assert compared["encoder_time"]["value"] < 0.8  # one window of 2 s for each word instead of three
    assert compared["rtf"]["cut"] * figures["audio_s"] > figures["detector_time"]["value"]
    assert "1 of 13 clips have no speech: their text is empty" in said
    assert "RTF with the detector: " in said


def test_train_chooses_its_window_by_what_is_left(adapter, sets, command):
    output, said = adapter
    card = json.loads((output / "card.json").read_text())
    assert card["skip_silence"] is True
    assert max(card["windows_s"]) <= 2.0
    assert (card["silence"]["train"]["n_clips"], card["silence"]["train"]["n_without_speech"]) == (13, 1)
    assert card["silence"]["dev"]["n_without_speech"] == 1
    assert card["data"]["n_train"] == 12
    assert card["data"]["train_audio_s"] == pytest.approx(card["silence"]["train"]["kept_s"], abs=0.02)
    assert "1 training clips without speech left out, e.g. " in said
    uncut = ["train", "-m", model_dir(), "--train", sets / "train.jsonl", "-o", sets / "uncut", "--dry-run"]
    assert "window 6 s" in command(*uncut, "--steps", 2, "--batch-size", 4)[1]


def test_evaluate_and_merge_cut_as_training_did_unless_told_otherwise(adapter, sets, command, tmp_path):
    output, _ = adapter
    report, cut, _ = evaluated(command, output, sets / "test.jsonl")
    assert report["silence"]["n_without_speech"] == 1
    assert cut["test-none.wav"] == ""
    assert evaluated(command, output, sets / "test.jsonl", "--no-skip-silence")[0]["silence"] is None
    code, said = command("merge", output, "-o", tmp_path / "merged", "--candidate", "dequantised")
    assert code == 0, said
    assert "1 of 9 clips have no speech" in said
    assert json.loads((tmp_path / "merged" / "card.json").read_text())["skip_silence"] is True
    merged, texts, _ = evaluated(command, tmp_path / "merged", sets / "test.jsonl")
    assert (texts, merged["silence"]["kept_s"]) == (cut, report["silence"]["kept_s"])
    command("merge", output, "-o", tmp_path / "whole", "--candidate", "dequantised", "--no-skip-silence")
    assert json.loads((tmp_path / "whole" / "card.json").read_text())["skip_silence"] is False

    line = ["export", tmp_path / "merged", "-d", sets / "test.jsonl", "-o", tmp_path / "bundle", "--eval-clips", 2]
    code, said = command(*line)
    assert code == 2
    assert "was trained with skip_silence, and the runner on the board cuts no silence" in said
    assert "Pass --with-silence to export all the same" in said
    assert not (tmp_path / "bundle").exists()
    code, said = command(*line, "--with-silence")
    assert code == 0, said
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["audio"]["cut_in_training"] is True
    from edgeqlora_jetson.bundle import Bundle
    from edgeqlora_jetson.commands.transcribe import format_info

    assert "Silence     not cut here, but was in training" in format_info(Bundle.load(tmp_path / "bundle"))
    board, _, said = evaluated(command, tmp_path / "bundle", sets / "test.jsonl")
    assert board["silence"] is None
    assert "the model learned from audio without silence, and the board hears it" in said
    here, on_bundle, _ = evaluated(command, tmp_path / "bundle", sets / "test.jsonl", "--skip-silence")
    assert on_bundle == texts
    assert here["silence"]["compared"]["encoder_time"]["value"] < 0.8


def test_training_data_without_any_speech_is_refused(sets, command, tmp_path):
    row = json.dumps({"audio": str(sets / "train-none.wav"), "text": "zero"})
    (tmp_path / "none.jsonl").write_text(row + "\n")
    code, said = command(
        "train", "-m", model_dir(), "--train", tmp_path / "none.jsonl", "-o", tmp_path / "adapter", "--skip-silence"
    )
    assert code == 2
    assert "no speech was found in any of the 1 training clips" in said


def test_a_run_is_not_resumed_with_other_cuts(sets, command, tmp_path, monkeypatch):
    from edgeqlora.settings import make_settings
    from edgeqlora.train import train

    given = {
        "base_model": str(model_dir()),
        "train": str(sets / "train.jsonl"),
        "dev": str(sets / "dev.jsonl"),
        "output": str(tmp_path / "adapter"),
        "steps": 4,
        "eval_every": 2,
        "batch_size": 4,
        "cache": "none",
        "skip_silence": True,
    }

    def stop(step, figures):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make_settings(given), watch=stop)
    monkeypatch.setattr(silence, "KEPT_S", 0.1)
    flags = [
        "--skip-silence" if value is True else f"--{name.replace('_', '-')}={value}" for name, value in given.items()
    ]
    code, said = command("train", *flags, "--resume")
    assert code == 2
    assert "--resume, but speech in the clips changed since the unfinished run" in said


def test_times_of_segments_are_those_of_the_recording(sets, monkeypatch):
    """A decoder with times: 0.1 to 0.5 s of each window. The first clip has two words 2 s apart, the second is cut by hand."""
    from edgeqlora.models.whisper.learner import WhisperDecoder

    def timed(self, features, n_valid, window_s, states=None):
        return [Transcription("zero", (Segment("zero", 0.1, 0.5),)) for _ in features]

    monkeypatch.setattr(WhisperDecoder, "transcribe", timed)
    recogniser = Recogniser(load_learner(str(model_dir())), [1.0])
    path = str(sets / "test-0.wav")
    two = Row(path, "", kept=((8_000, 12_800), (32_000, 44_800)))
    assert recogniser.recognise([Row(path, ""), two, Row(path, "", kept=())]).segments[1:] == [
        # 0.1 s into the first part is 0.6 s; 0.5 s is 0.2 s into the second, which begins at 2 s. The clip of 1.1 s makes
        # two windows; the second begins where it was cut.
        [Segment("zero", 0.6, 2.2), second_of(recogniser, two)],
        [],
    ]


def second_of(recogniser: Recogniser, row: Row) -> Segment:
    from edgeqlora_jetson.audio.windows import split_long

    _, (start, _) = split_long(load_audio(row), 1.0)
    assert start > 4_800  # in the second part
    first, last = (start + sample - 4_800 + 32_000 for sample in (1_600, 8_000))
    return Segment("zero", first / 16_000, min(last, 44_800) / 16_000)


def test_general_speech_is_cut_too(sets):
    from edgeqlora.models.family import load_processor
    from edgeqlora.settings import make_settings
    from edgeqlora.training.general import load_canary, prepare_replay

    given = {"base_model": str(model_dir()), "train": "-", "dev": "-", "output": "-", "skip_silence": True}
    settings = make_settings({**given, "replay": str(sets / "test.jsonl"), "canary": str(sets / "dev.jsonl")})
    replay = prepare_replay(settings, load_processor(str(model_dir())), [], print)
    assert len(replay.rows) == 12  # without the one that has no speech
    assert max(replay.windows_s) <= 2.0
    assert [row.kept == () for row in load_canary(settings)] == [False] * 8 + [True]


def test_a_study_scores_what_its_model_was_trained_to_hear(sets):
    from edgeqlora.research.run_arm import _scored

    card = {"windows_s": [2.0], "language": None, "task": None, "tokens_per_s": None, "skip_silence": True}
    learner = load_learner(str(model_dir()))
    learner.model.eval()
    scored = _scored(learner, str(sets / "test.jsonl"), card)
    assert sum(one["errors"] for one in scored) == 0
    assert (scored[-1]["tokens"], scored[0]["tokens"] > 0) == (0, True)


def test_without_the_library_nothing_is_computed(sets, command, monkeypatch):
    silence._detector.cache_clear()
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    code, said = command("evaluate", model_dir(), "-d", sets / "test.jsonl", "--skip-silence")
    assert code == 2
    assert "error: skip_silence finds speech with the library silero-vad" in said
    assert "WER" not in said
