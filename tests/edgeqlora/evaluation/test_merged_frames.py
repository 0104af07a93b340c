"""`evaluate --merge-frames`: one report with both texts, what was merged, and the encoder timed in turns."""

import json

import pytest

from edgeqlora.demo import model_dir, speech_dir

WINDOW = ("--window-s", "3", "--limit", "8", "--batch-size", "2", "--worst", "0")


def report_of(command, tmp_path, *options):
    output = tmp_path / "report.json"
    code, said = command("evaluate", *WINDOW, *options, "-o", output)
    assert code == 0, said
    return json.loads(output.read_text()), said


@pytest.mark.parametrize("family", ["whisper", "wav2vec2"])
def test_the_report_has_both_sides(family, command, tmp_path):
    data = ("-d", speech_dir() / "test.jsonl")
    plain, _ = report_of(command, tmp_path, model_dir(family), *data)
    assert "merged_frames" not in plain
    merged, said = report_of(command, tmp_path, model_dir(family), *data, "--merge-frames", "1e9")
    figures = merged["merged_frames"]
    assert (figures["kappa"], figures["after_layers"], figures["longest_run"]) == (1e9, 1, 4)
    assert 70 < figures["speech"]["value"] <= 75  # four frames are one, but for the last of a clip
    assert 70 < figures["padding"]["value"] <= 75
    seconds = sum(json.loads(line)["duration"] for line in (speech_dir() / "test.jsonl").read_text().splitlines()[:8])
    assert 0.9 * 50 * seconds < figures["speech"]["n_frames"] < 50 * seconds + 8
    assert figures["without"]["wer"] == plain["wer"]
    assert figures["without"]["perplexity"]["value"] == pytest.approx(plain["perplexity"]["value"], rel=1e-3)
    assert merged["perplexity"]["value"] > 1.1 * plain["perplexity"]["value"]
    assert merged["wer"] != plain["wer"]
    assert figures["encoder_ratio"]["n_batches"] == 3  # of four: the first warms up
    assert figures["encoder_ms"]["value"] > 0 < figures["encoder_ms_without"]["value"]
    assert "frames merged after 1 encoder layers at kappa 1e+09: speech 7" in said
    assert f"without merging: WER {plain['wer']['basic-unicode']['value']:.2f} % basic-unicode" in said
    assert "ms a clip without" in said


def test_a_kappa_that_merges_nothing_changes_nothing(command, tmp_path):
    data = ("-d", speech_dir() / "test.jsonl")
    report, said = report_of(command, tmp_path, model_dir(), *data, "--merge-frames", "1e-9", "--batch-size", "8")
    figures = report["merged_frames"]
    assert figures["speech"]["value"] == figures["padding"]["value"] == 0
    assert {name: figures["without"][name] for name in ("wer", "cer", "perplexity")} == {
        name: report[name] for name in ("wer", "cer", "perplexity")
    }
    assert figures["encoder_ratio"]["value"] is None
    assert "encoder: one batch warms up: take more clips, or a smaller --batch-size" in said


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--merge-frames", "-1"), "merge_frames=-1: allowed is a number from 0 (off), such as 1"),
        (("--merge-frames", "1", "--merge-after", "3"), "merge_after=3: the encoder has 3 layers"),
    ],
)
def test_what_is_refused(options, text, command):
    code, said = command("evaluate", model_dir(), "-d", speech_dir() / "test.jsonl", *WINDOW, *options)
    assert code == 2
    assert text in said


def test_a_bundle_is_refused(command, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    code, said = command("evaluate", tmp_path, "-d", speech_dir() / "test.jsonl", "--merge-frames", "1")
    assert code == 2
    assert "--merge-frames changes a torch model, and a bundle holds graphs: evaluate the merged folder" in said
