"""The data check finds every planted fault, names it, and says nothing about good data."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from edgeqlora.data.check.report import SplitFigures, histogram
from edgeqlora.data.check.run import CheckReport, LabelRules, check_data, format_report, run_check
from edgeqlora.data.manifest import write_manifest
from edgeqlora.data.row import Row
from edgeqlora.errors import UserError
from edgeqlora.models.family import load_processor


@pytest.fixture
def clip(tmp_path):
    """Write a clip of noise and give its row; every name sounds different."""

    def write(name: str, seconds: float = 0.5, text: str = "hello", rate_hz: int = 16000, **fields) -> Row:
        rng = np.random.default_rng(sum(name.encode()) + round(seconds * 1000))
        audio = rng.uniform(-0.5, 0.5, round(seconds * rate_hz))
        soundfile.write(tmp_path / name, audio, rate_hz)
        return Row(str(tmp_path / name), text, speaker=fields.pop("speaker", None), **fields)

    return write


LATIN = LabelRules(expected_scripts=frozenset({"LATIN"}))


def found(report: CheckReport) -> dict[str, int]:
    return {finding.name: finding.count for finding in report.findings}


def finding(report: CheckReport, name: str):
    return next(finding for finding in report.findings if finding.name == name)


def test_good_data_has_no_findings(clip):
    splits = {
        "train": [clip("a.wav", speaker="x", duration=0.5), clip("b.wav", speaker="x")],
        "test": [clip("c.wav", speaker="y", language="en", text="hell")],
    }
    report = check_data(splits, window_s=0.5, rules=LATIN)
    assert found(report) == {}
    assert report.n_errors == 0
    assert "nothing to correct" in format_report(report)
    figures = report.splits["train"]
    assert (figures.n_rows, figures.longest_s, figures.n_speakers) == (2, 0.5, 1)
    assert figures.sample_rates_hz == {16000: 2}
    assert figures.characters == {"l": 4, "h": 2, "e": 2, "o": 2}
    assert figures.hours == pytest.approx(1 / 3600)


def test_bad_audio(clip, tmp_path):
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "empty.wav").touch()
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    bad = [Row(str(tmp_path / name), "x") for name in ("gone.wav", "text.wav", "empty.wav", "none.wav")]
    report = check_data({"train": [clip("a.wav"), *bad]})
    assert found(report) == {"undecodable_audio": 4}
    examples = finding(report, "undecodable_audio").examples
    for name, example in zip(("gone.wav", "text.wav", "empty.wav", "none.wav"), examples, strict=True):
        assert example.startswith("train: ")
        assert name in example


def test_silent_and_overdriven(clip, tmp_path):
    for name in ("s1.wav", "s2.wav"):
        soundfile.write(tmp_path / name, np.zeros(800), 16000)
    loud = np.tile([1.0, 0.2, -1.0, 0.1], 200)
    soundfile.write(tmp_path / "loud.wav", loud, 16000)
    rows = [
        Row(str(tmp_path / "s1.wav"), "talk"),
        Row(str(tmp_path / "s2.wav"), ""),
        Row(str(tmp_path / "loud.wav"), "x"),
    ]
    report = check_data({"train": rows})
    assert found(report) == {"silent_audio": 1, "clipped_audio": 1, "empty_text": 1}
    assert "50.00 % of samples" in finding(report, "clipped_audio").examples[0]
    assert "s1.wav" in finding(report, "silent_audio").examples[0]


def test_long_clips_and_wrong_durations(clip):
    splits = {
        "train": [clip("a.wav", 2.0), clip("b.wav", 2.01), clip("c.wav", 1.0, duration=1.2)],
        "dev": [clip("d.wav", 3.0, duration=3.09, text="hell")],
    }
    report = check_data(splits, window_s=2.0)
    assert found(report) == {"longer_than_window": 1, "longer_than_window_in_evaluation": 1, "wrong_duration": 1}
    assert finding(report, "longer_than_window").examples[0].endswith("b.wav: 2.01 s")
    assert "manifest says 1.20 s, audio has 1.00 s" in finding(report, "wrong_duration").examples[0]
    assert [finding.severity for finding in report.findings] == ["error", "warning", "warning"]


def test_broken_off_download(tmp_path):
    path = tmp_path / "a.mp3"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 48000), 16000)
    path.write_bytes(path.read_bytes()[:5000])
    report = check_data({"train": [Row(str(path), "x")]})
    assert found(report) == {"truncated_audio": 1}
    assert "a.mp3: header says 3.00 s" in finding(report, "truncated_audio").examples[0]


def test_duplicates_are_found_by_sound_not_by_name(clip, tmp_path):
    first = clip("a.wav")
    samples, rate_hz = soundfile.read(first.audio, dtype="int16")
    soundfile.write(tmp_path / "copy.flac", samples, rate_hz)
    copy = Row(str(tmp_path / "copy.flac"), "goodbye")
    report = check_data({"train": [first, clip("b.wav"), first], "test": [copy]})
    assert found(report)["duplicate_across_splits"] == 1
    example = finding(report, "duplicate_across_splits").examples[0]
    assert example.startswith("train: ")
    assert "test: " in example
    assert example.endswith("(with different text)")
    assert found(check_data({"train": [first, first]})) == {"duplicate_within_split": 1}
    cuts = [replace(first, start=0.0, end=0.2), replace(first, start=0.2, end=0.4)]
    assert found(check_data({"train": cuts})) == {}, "two cuts of one file are two recordings"


def test_speakers_in_two_splits(clip):
    splits = {
        "train": [clip("a.wav", speaker="x"), clip("b.wav", speaker="x")],
        "test": [clip("c.wav", speaker="x"), clip("d.wav")],
    }
    assert finding(check_data(splits), "speaker_overlap").examples == ["speaker x: 2 rows in train, 1 rows in test"]


def test_scripts(clip):
    rows = [
        clip("a.wav", text="привет", language="en"),
        clip("b.wav", text="привет", language="ru"),
        clip("c.wav", text="p\u0430ypal", language="en"),
        clip("d.wav", text="123"),
    ]
    report = check_data({"train": rows})
    assert found(report) == {"wrong_script": 1, "mixed_script": 1}
    assert finding(report, "wrong_script").examples[0].endswith("a.wav: CYRILLIC: привет")
    assert finding(report, "wrong_script").severity == "warning"  # training keeps it
    report = check_data({"train": rows, "dev": [clip("e.wav", text="\u043f\u0430")]}, rules=LATIN)
    assert found(report)["wrong_script"] == 3
    assert finding(report, "wrong_script").severity == "error"  # all of dev


def test_what_is_wrong_with_characters(clip):
    rows = [
        clip("a.wav", text="caf\u00c3\u00a9"),
        clip("b.wav", text="so \ufffd"),
        clip("c.wav", text="cafe\u0301"),
        clip("d.wav", text="stop <|endoftext|>"),
        clip("e.wav", text="\u266a \u2026"),
    ]
    report = check_data({"train": rows}, rules=LATIN)
    assert found(report) == {"broken_encoding": 2, "control_text": 1, "no_words": 1, "not_nfc": 1}
    assert [f.severity for f in report.findings] == ["warning", "warning", "warning", "note"]
    assert finding(report, "control_text").examples[0].endswith("d.wav: <|endoftext|>")
    # A split that was written otherwise has no other characters for it.
    assert "unseen_characters" not in found(
        check_data({"train": [clip("f.wav", text="\u00e9")], "dev": [clip("g.wav", text="e\u0301")]})
    )


def test_tokens(clip):
    rows = [clip("a.wav", text="one two three four"), clip("b.wav", text="one #")]
    tokenise = {"one two three four": [1, 2, 3, 4], "one #": [1, 7]}.__getitem__
    report = check_data({"train": rows}, rules=LabelRules(tokenise, 3, frozenset({7, 8})))
    assert found(report) == {"label_too_long": 1, "suppressed_token": 1}
    assert finding(report, "label_too_long").examples[0].endswith("a.wav: 4 tokens")
    assert finding(report, "suppressed_token").examples[0].endswith("b.wav: ids 7: one #")


def test_formats_case_and_characters(clip, tmp_path):
    stereo = np.random.default_rng(0).uniform(-0.5, 0.5, (800, 2))
    soundfile.write(tmp_path / "stereo.wav", stereo, 8000)
    splits = {"train": [clip("a.wav", text="HELLO")], "dev": [Row(str(tmp_path / "stereo.wav"), "HEY!")]}
    report = check_data(splits)
    assert found(report) == {
        "mixed_sample_rates": 1 + 1,
        "mixed_channels": 1 + 1,
        "unseen_characters": 1,
        "upper_case_text": 1,
    }
    assert finding(report, "mixed_sample_rates").examples == ["8000 Hz: 1 files", "16000 Hz: 1 files"]
    assert finding(report, "unseen_characters").examples == ["dev: '!' 'Y'"]
    assert {finding.severity for finding in report.findings} == {"note"}


def test_histogram_by_hand():
    assert histogram([0.1, 0.25, 0.3, 1.0], most_bins=6) == [
        (0.0, 0.2, 1),
        (0.2, 0.4, 2),
        (0.4, 0.6, 0),
        (0.6, 0.8, 0),
        (0.8, 1.0, 0),
        (1.0, 1.2, 1),
    ]
    assert histogram([]) == []
    assert sum(count for _, _, count in histogram([30.0] * 7 + [0.001])) == 8


def test_report_as_json_and_text(clip, tmp_path):
    missing = [Row(str(tmp_path / f"gone{i}.wav"), "x y,z") for i in range(7)]
    report = check_data({"train": [clip("a.wav"), *missing]}, window_s=2.0)
    values = json.loads(json.dumps(report.to_json()))
    assert values["schema"] == "edgeqlora.data_check/1"
    assert values["n_errors"] == 1
    assert values["splits"]["train"]["duration_histogram"] == [{"from_s": 0.5, "to_s": 0.55, "count": 1}]
    assert len(values["findings"][0]["examples"]) == 5
    text = format_report(report)
    assert "ERROR    7 x audio missing or not decodable" in text
    assert "and 2 more" in text
    assert "in all: 1 error" in text
    assert "space 7" in text
    assert ", 7" in text


def test_report_fits_100_columns():
    figures = SplitFigures(
        10**6, 9999.5, 29.99, 4000, {8000: 1}, {1: 1}, {chr(97 + i): i for i in range(200)}, [1.0, 2.0]
    )
    lines = format_report(CheckReport({"validation-clean": figures}, [], None)).splitlines()
    assert max(len(line) for line in lines) <= 100


def test_progress_counts_every_row(clip):
    calls = []
    check_data({"train": [clip("a.wav"), clip("b.wav")], "dev": [clip("c.wav")]}, progress=lambda *c: calls.append(c))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_run_check_picks_splits(clip, tmp_path):
    for split in ("train", "dev"):
        write_manifest([clip(f"{split}.wav", text=f"{split} é", language="en")], tmp_path / "set" / f"{split}.jsonl")
    folder = str(tmp_path / "set")
    assert list(run_check({"all": folder}).splits) == ["train", "dev"]
    assert list(run_check({"dev": folder}).splits) == ["dev"]
    assert run_check({"x": f"{folder}/dev.jsonl", "y": folder + "/train.jsonl"}).splits["x"].characters["d"] == 1
    with pytest.raises(UserError, match="has the splits dev, train, none of them for test"):
        run_check({"test": folder})
    with pytest.raises(UserError, match="no data set to check"):
        run_check({})
    rules = LabelRules(expected_scripts=frozenset({"GREEK"}))
    assert found(run_check({"all": folder}, rules=rules))["wrong_script"] == 2


@pytest.mark.real
def test_real_speaker_overlap(shared):
    report = run_check({"all": str(shared / "data" / "librispeech-sample")}, window_s=30.0)
    assert list(report.splits) == ["train", "dev", "test"]
    assert finding(report, "speaker_overlap").examples == ["speaker 19: 34 rows in dev, 34 rows in test"]
    assert report.n_errors == 0


@pytest.mark.real
def test_real_fsdd_is_clean(shared):
    report = run_check({"all": str(shared / "data" / "fsdd")}, window_s=2.0)
    assert found(report) == {"longer_than_window_in_evaluation": 2, "text_across_splits": 1000, "unread_fields": 1}
    assert "official_split (3000 rows), digit (3000 rows)" in finding(report, "unread_fields").examples[0]
    assert {name: figures.n_rows for name, figures in report.splits.items()} == {"train": 2000, "dev": 500, "test": 500}


@pytest.mark.real
def test_real_label_rules(shared):
    rules = load_processor(str(shared / "models" / "whisper-tiny.en")).label_rules()
    assert rules.max_text_tokens == 446
    assert rules.expected_scripts == {"LATIN"}
    assert rules.tokenise is not None
    assert rules.suppressed_ids.intersection(rules.tokenise("a #1 song"))
    assert not rules.suppressed_ids.intersection(rules.tokenise("seven"))
