"""The report: hand-computed figures from written-down measurements, and one real run on the tiny bundle."""

import json

import pytest

from edgeqlora_jetson.bench import Loading, Measurement, Settings, run_bench
from edgeqlora_jetson.bundle import Bundle, EvalClip
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.report import build_report, figure, format_table, nearest_rank, write_report
from edgeqlora_jetson.transcribe import Transcript


class NamedRuntime(object):
    name, version, threads, providers = "scripted", "1", 2, ["CPUExecutionProvider"]


def transcript(text, total_ms, audio_s=1.0, n_steps=2, n_pieces=1, n_incomplete=0):
    return Transcript(
        text=text,
        tokens=[1],
        window_s=1.0,
        n_pieces=n_pieces,
        n_incomplete=n_incomplete,
        n_steps=n_steps,
        mel_ms=1.0,
        encoder_ms=2.0,
        decoder_ms=total_ms - 3.0,
        first_token_ms=4.0,
        total_ms=total_ms,
        audio_s=audio_s,
    )


def report_of(fixture_folder, clips, measurements, batch_size=1):
    return build_report(
        Bundle.load(fixture_folder),
        NamedRuntime(),
        clips,
        measurements,
        Settings(1, 2, batch_size, None),
        Loading(5.0, None, 20.0),
        30.0,
    )


CLIPS = [EvalClip("/x/a.wav", "one two", "a.wav"), EvalClip("/x/b.wav", "Three", "b.wav")]


def test_figures_by_hand(fixture_folder):
    """Two clips, two repeats: 10, 20, 30, 40 ms for 1 s + 3 s of audio twice."""
    report = report_of(
        fixture_folder,
        CLIPS,
        [
            Measurement(0, 0, 0, transcript("one too", 10.0)),
            Measurement(1, 0, 1, transcript("three", 20.0, 3.0)),
            Measurement(0, 1, 2, transcript("one too", 30.0)),
            Measurement(1, 1, 3, transcript("tree", 40.0, 3.0)),
        ],
    )
    assert report["schema"] == "edgeqlora.report/1"
    total = {name: fig["value"] for name, fig in report["latency_ms"]["total"].items()}
    assert total == {"p50": 20.0, "p90": 40.0, "p99": 40.0, "mean": 25.0, "max": 40.0}
    assert report["latency_ms"]["total"]["p50"]["unit"] == "ms"
    # Decoder 7, 17, 27, 37 ms in 2 steps each.
    assert report["latency_ms"]["decoder_step"]["mean"]["value"] == 11.0
    assert report["throughput"]["rtf"]["value"] == pytest.approx(0.1 / 8.0)
    assert report["throughput"]["clips_per_s"]["value"] == pytest.approx(40.0)
    assert report["throughput"]["audio_s_per_s"]["value"] == pytest.approx(80.0)
    # Accuracy is of the first repeat: "one too" for "one two", "three" for "Three".
    assert report["accuracy"]["basic"]["wer"]["value"] == pytest.approx(100.0 / 3)
    assert report["accuracy"]["none"]["wer"]["value"] == pytest.approx(200.0 / 3)
    assert report["accuracy"]["basic"]["wer"]["substitutions"] == 1
    assert report["accuracy"]["basic"]["cer"]["value"] == pytest.approx(100.0 / 12)
    assert report["clips"]["n_unstable"] == 1
    assert report["utterances"][1] == {
        "audio": "b.wav",
        "reference": "Three",
        "hypothesis": "three",
        "audio_s": 3.0,
        "window_s": 1.0,
        "n_pieces": 1,
        "n_tokens": 1,
        "latency_ms": [20.0, 40.0],
    }


def test_a_batch_counts_once(fixture_folder):
    """Two clips together in 10 ms: 200 clips/s, latency 10 ms, not 20."""
    report = report_of(
        fixture_folder,
        CLIPS,
        [Measurement(0, 0, 0, transcript("one two", 10.0)), Measurement(1, 0, 0, transcript("three", 10.0))],
        2,
    )
    assert report["throughput"]["clips_per_s"]["value"] == pytest.approx(200.0)
    assert report["latency_ms"]["total"]["mean"]["value"] == 10.0
    assert "Latency per batch, ms" in format_table(report)


def figures_in(value):
    if isinstance(value, dict):
        if "value" in value:
            yield value
        for part in value.values():
            for fig in figures_in(part):
                yield fig


def test_missing_is_null_with_a_reason_never_zero(fixture_folder):
    report = report_of(
        fixture_folder, [EvalClip("a.wav", None, "a.wav")], [Measurement(0, 0, 0, transcript("x", 10.0))]
    )
    for fig in (
        report["power"]["power_mw"],
        report["power"]["energy_j"],
        report["power"]["temperature_c"],
        report["memory"]["rss_before_load"],
        report["accuracy"]["basic"]["wer"],
    ):
        assert fig["value"] is None
        assert fig["reason"]
    assert report["accuracy"]["basic"]["wer"]["reason"] == "the clips have no references"
    figures = list(figures_in(report))
    assert len(figures) > 40
    assert all("unit" in fig and ("reason" in fig) == (fig["value"] is None) for fig in figures)
    with pytest.raises(ValueError, match="needs its reason"):
        figure(None, "ms")
    assert "not measured (this version" in format_table(report)


def test_nearest_rank_by_hand():
    assert nearest_rank([15, 20, 35, 40, 50], 30) == 20  # rank ceil(0.3 * 5) = 2
    assert nearest_rank([15, 20, 35, 40, 50], 40) == 20
    assert nearest_rank([15, 20, 35, 40, 50], 50) == 35
    assert nearest_rank([50, 15, 40, 20, 35], 100) == 50
    assert nearest_rank([7], 50) == nearest_rank([7], 99) == 7


def test_notes_in_the_table(fixture_folder):
    table = format_table(
        report_of(
            fixture_folder,
            CLIPS,
            [
                Measurement(0, 0, 0, transcript("a", 10.0, n_pieces=2)),
                Measurement(1, 0, 1, transcript("b", 10.0, n_incomplete=1)),
            ],
        )
    )
    assert "1 of 2 clips were longer than the largest window and were cut" in table
    assert "1 of 2 clips ran into the token limit" in table
    for unit in ("ms", "clips/s", "MiB", "%"):
        assert unit in table


def test_real_run(fixture_folder, expected, tmp_path):
    pytest.importorskip("onnxruntime")
    bundle = Bundle.load(fixture_folder)
    calls = []
    report = run_bench(
        bundle,
        bundle.read_eval_clips(),
        warmup=4,
        repeats=2,
        batch_size=1,
        progress=lambda n_done, n_total: calls.append((n_done, n_total)),
    )
    assert [row["hypothesis"] for row in report["utterances"]] == expected["texts"]
    assert [len(row["latency_ms"]) for row in report["utterances"]] == [2, 2, 2]
    assert calls == [(n, 6) for n in range(1, 7)]
    # The last reference has one word more than the model says.
    assert report["accuracy"]["basic"]["wer"]["deletions"] == 1
    assert report["accuracy"]["basic"]["wer"]["substitutions"] == 0
    assert report["clips"]["n_per_window"] == {"0.5": 2, "1.0": 1}
    assert report["method"]["warmup"] == 4
    assert report["bundle"]["manifest_sha256"] == bundle.manifest_sha256
    assert 0 < report["memory"]["rss_before_load"]["value"] <= report["memory"]["peak_rss"]["value"]
    write_report(tmp_path / "report.json", report)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report


def test_batches_give_the_same_texts(fixture_folder, expected):
    pytest.importorskip("onnxruntime")
    bundle = Bundle.load(fixture_folder)
    report = run_bench(bundle, bundle.read_eval_clips(), warmup=0, repeats=1, batch_size=2)
    assert [row["hypothesis"] for row in report["utterances"]] == expected["texts"]


def test_settings_out_of_range(fixture_folder):
    bundle = Bundle.load(fixture_folder)
    clips = bundle.read_eval_clips()
    for settings, message in (
        ({"repeats": 0}, "repeats=0, allowed 1 to 10000"),
        ({"warmup": -1}, "warmup=-1, allowed 0 to 10000"),
        ({"batch_size": 0}, "batch_size=0, allowed 1 to 1024"),
    ):
        with pytest.raises(UserError, match=message):
            run_bench(bundle, clips, **settings)
    with pytest.raises(UserError, match="no clips to measure on"):
        run_bench(bundle, [])
