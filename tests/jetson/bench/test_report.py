"""The report: hand-computed figures from written-down measurements, and one real run on the tiny bundle."""

import json

import pytest

from edgeqlora_jetson.bench.report import build_report, figure, format_table, nearest_rank, write_report
from edgeqlora_jetson.bench.run import Loading, Run, Settings, check_settings, choose_batch, choose_scenario, run_bench
from edgeqlora_jetson.bench.scenarios import Measurement
from edgeqlora_jetson.bench.warmup import WarmUp
from edgeqlora_jetson.board.detect import detect_board
from edgeqlora_jetson.bundle import Bundle, EvalClip
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.sensors.session import missing_energy
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
        phases_ms={"features": 1.0, "encoder": 2.0, "decoder": total_ms - 3.0},
        first_token_ms=4.0,
        total_ms=total_ms,
        audio_s=audio_s,
        heard_s=0.8,
        n_again=n_incomplete,
    )


class NoSensors(object):
    """Sensors of a machine that has none, after the run; parts may be replaced."""

    def __init__(self, **parts):
        self.board = detect_board(boards={})
        self.energy = missing_energy("no power source: none was asked for")
        self.memory, self.problems, self.warnings = {}, [], []
        self.thermal = {"zones": {}, "throttled": False, "reasons": []}
        self.telemetry = self
        for name, part in parts.items():
            setattr(self, name, part)

    def cost(self):
        return {"cpu_s": 0.0, "active_s": 1.0, "n_polls": 4, "period_s": 0.25}


def measured(clip, repeat, batch, t, **more):
    return Measurement(clip, repeat, batch, t, more.pop("latency_ms", t.total_ms), more.pop("waiting_ms", 0.0), **more)


def report_of(fixture_folder, clips, measurements, batch_size=1, run_s=0.2, sensors=None, settings=None, scenario=None):
    settings = settings or Settings(warmup=1, repeats=2, batch_size=batch_size)
    scenario = scenario or ("single-stream" if batch_size == 1 else "offline")
    rate = 5.0 if scenario == "server" else None
    run = Run(50.0, 50.0 + run_s, measurements, WarmUp(4, 1.0, True, 10.0), scenario, batch_size, rate, rate, None)
    return build_report(
        Bundle.load(fixture_folder),
        NamedRuntime(),
        clips,
        run,
        settings,
        Loading(5.0, None, 20.0),
        sensors or NoSensors(),
    )


CLIPS = [EvalClip("/x/a.wav", "one two", "a.wav"), EvalClip("/x/b.wav", "Three", "b.wav")]


def test_figures_by_hand(fixture_folder):
    """Two clips, two repeats: 10, 20, 30, 40 ms for 1 s + 3 s of audio twice."""
    report = report_of(
        fixture_folder,
        CLIPS,
        [
            measured(0, 0, 0, transcript("one too", 10.0)),
            measured(1, 0, 1, transcript("three", 20.0, 3.0)),
            measured(0, 1, 2, transcript("one too", 30.0)),
            measured(1, 1, 3, transcript("tree", 40.0, 3.0)),
        ],
    )
    assert report["schema"] == "edgeqlora.report/2"
    total = {name: fig["value"] for name, fig in report["latency_ms"]["total"].items()}
    assert total == {"p50": 20.0, "p90": 40.0, "p99": 40.0, "mean": 25.0, "max": 40.0}
    assert report["latency_ms"]["total"]["p50"]["unit"] == "ms"
    # Decoder 7, 17, 27, 37 ms in 2 steps each.
    assert report["latency_ms"]["decoder_step"]["mean"]["value"] == 11.0
    assert report["throughput"]["rtf"]["value"] == pytest.approx(0.1 / 8.0)
    # Rates are of the run's 0.2 s, in which the model worked for 0.1 s.
    assert report["throughput"]["clips_per_s"]["value"] == pytest.approx(20.0)
    assert report["throughput"]["audio_s_per_s"]["value"] == pytest.approx(40.0)
    # Accuracy is of the first repeat: "one too" for "one two", "three" for "Three".
    assert report["accuracy"]["basic-unicode"]["wer"]["value"] == pytest.approx(100.0 / 3)
    assert report["accuracy"]["none"]["wer"]["value"] == pytest.approx(200.0 / 3)
    assert report["accuracy"]["basic-unicode"]["wer"]["substitutions"] == 1
    assert report["accuracy"]["basic-unicode"]["cer"]["value"] == pytest.approx(100.0 / 12)
    assert report["clips"]["n_unstable"] == 1
    assert (report["clips"]["heard_s"], report["clips"]["n_again"]) == (1.6, 0)
    assert report["utterances"][1] == {
        "audio": "b.wav",
        "reference": "Three",
        "hypothesis": "three",
        "audio_s": 3.0,
        "window_s": 1.0,
        "heard_s": 0.8,
        "n_pieces": 1,
        "n_tokens": 1,
        "latency_ms": [20.0, 40.0],
    }


def test_texts_without_spaces_are_scored_by_characters(fixture_folder):
    clips = [EvalClip("a.wav", "今天，天气", "a.wav")]
    report = report_of(fixture_folder, clips, [measured(0, 0, 0, transcript("今天天汽", 10.0))])
    assert report["leading"] == "cer"
    assert report["accuracy"]["basic-unicode"]["wer"]["value"] is None
    assert "without spaces between words" in report["accuracy"]["basic-unicode"]["wer"]["reason"]
    assert report["accuracy"]["basic-unicode"]["cer"]["value"] == 25.0
    table = format_table(report)
    assert table.index("CER (basic-unicode)") < table.index("WER (basic-unicode)")
    assert "25.00 % of 4 characters without spaces: 1 wrong" in table


def test_a_batch_counts_once(fixture_folder):
    """Two clips together in 10 ms of a run of 20 ms: 100 clips/s, latency 10 ms, not 20."""
    report = report_of(
        fixture_folder,
        CLIPS,
        [measured(0, 0, 0, transcript("one two", 10.0)), measured(1, 0, 0, transcript("three", 10.0))],
        2,
        0.02,
    )
    assert report["throughput"]["clips_per_s"]["value"] == pytest.approx(100.0)
    assert report["throughput"]["rtf"]["value"] == pytest.approx(0.01 / 2.0)
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
    report = report_of(fixture_folder, [EvalClip("a.wav", None, "a.wav")], [measured(0, 0, 0, transcript("x", 10.0))])
    for fig in (
        report["energy"]["energy"],
        report["energy"]["net_energy_per_audio_s"],
        report["energy"]["mean_power"],
        report["memory"]["rss_before_load"],
        report["accuracy"]["basic-unicode"]["wer"],
    ):
        assert fig["value"] is None
        assert fig["reason"]
    assert report["accuracy"]["basic-unicode"]["wer"]["reason"] == "the clips have no references"
    figures = list(figures_in(report))
    assert len(figures) > 40
    assert all("unit" in fig and ("reason" in fig) == (fig["value"] is None) for fig in figures if "passed" not in fig)
    with pytest.raises(ValueError, match="needs its reason"):
        figure(None, "ms")
    assert "not measured (no power source: none was asked for)" in format_table(report)


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
                measured(0, 0, 0, transcript("a", 10.0, n_pieces=2)),
                measured(1, 0, 1, transcript("b", 10.0, n_incomplete=1)),
            ],
        )
    )
    assert "1 of 2 clips were longer than the largest window and were cut" in table
    assert "1 of 2 clips repeated themselves or ran into the token limit" in table
    for unit in ("ms", "clips/s", "MiB", "%"):
        assert unit in table


def test_real_run(fixture_folder, expected, tmp_path):
    pytest.importorskip("onnxruntime")
    bundle = Bundle.load(fixture_folder)
    calls = []
    report = run_bench(
        bundle,
        bundle.read_eval_clips(),
        Settings(warmup=4, repeats=2, power="none"),
        progress=lambda n_done, n_total: calls.append((n_done, n_total)),
    )
    assert [row["hypothesis"] for row in report["utterances"]] == expected["texts"]
    assert [len(row["latency_ms"]) for row in report["utterances"]] == [2, 2, 2]
    assert calls == [(n, 6) for n in range(1, 7)]
    # The last reference has one word more than the model says.
    assert report["accuracy"]["basic-unicode"]["wer"]["deletions"] == 1
    assert report["accuracy"]["basic-unicode"]["wer"]["substitutions"] == 0
    assert report["clips"]["n_per_window"] == {"0.5": 2, "1.0": 1}
    assert report["method"]["warmup"]["n_calls"] >= 4
    assert report["method"]["scenario"] == "single-stream"
    assert report["bundle"]["manifest_sha256"] == bundle.manifest_sha256
    # The kernel counts both in batches of pages: they may be apart by a few.
    assert 0 < report["memory"]["rss_before_load"]["value"] <= report["memory"]["peak_rss"]["value"] + 1.0
    write_report(tmp_path / "report.json", report)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report


def test_batches_give_the_same_texts(fixture_folder, expected):
    pytest.importorskip("onnxruntime")
    bundle = Bundle.load(fixture_folder)
    report = run_bench(bundle, bundle.read_eval_clips(), Settings(warmup=0, repeats=1, batch_size=2, power="none"))
    assert [row["hypothesis"] for row in report["utterances"]] == expected["texts"]


def test_server_run(fixture_folder, expected):
    pytest.importorskip("onnxruntime")
    bundle = Bundle.load(fixture_folder)
    settings = Settings(scenario="server", warmup=1, repeats=4, rate_per_s=200.0, power="none", target_latency_ms=1e4)
    report = run_bench(bundle, bundle.read_eval_clips(), settings)
    assert [row["hypothesis"] for row in report["utterances"]] == expected["texts"]
    assert [len(row["latency_ms"]) for row in report["utterances"]] == [4, 4, 4]
    assert report["method"]["rate_per_s"] == 200.0
    query, waiting = report["latency_ms"]["query"], report["latency_ms"]["waiting"]
    assert query["max"]["value"] >= waiting["max"]["value"] >= 0
    assert query["mean"]["value"] >= report["latency_ms"]["total"]["mean"]["value"]
    assert "Poisson arrivals at 200/s (seed 0)" in format_table(report)
    assert report["validity"]["is_valid"]


def test_min_count_and_min_duration_make_the_run_longer(fixture_folder, virtual_time):
    pytest.importorskip("onnxruntime")
    bundle = Bundle.load(fixture_folder)
    clips = bundle.read_eval_clips()
    report = run_bench(bundle, clips, Settings(warmup=0, repeats=1, min_count=10, power="none"))
    assert sum(len(row["latency_ms"]) for row in report["utterances"]) == 12  # whole passes over 3 clips
    report = run_bench(bundle, clips, Settings(warmup=0, repeats=1, min_duration_s=5.0, power="none"))
    assert report["throughput"]["run_s"]["value"] >= 5.0


def test_energy_is_given_for_a_second_of_audio_and_a_clip(fixture_folder):
    """12 J gross and 4 J net for 8 s of audio in 4 clips."""
    energy = dict(missing_energy("x"), energy=figure(12.0, "J"), net_energy=figure(4.0, "J"))
    report = report_of(
        fixture_folder,
        CLIPS,
        [measured(i % 2, i // 2, i, transcript("a", 10.0, 2.0)) for i in range(4)],
        sensors=NoSensors(energy=energy),
    )["energy"]
    assert report["energy_per_audio_s"] == {"value": 1.5, "unit": "J/audio s"}
    assert report["net_energy_per_audio_s"]["value"] == 0.5
    assert report["energy_per_clip"]["value"] == 3.0


def validity(fixture_folder, **parts):
    measurements = [measured(0, 0, 0, transcript("one two", 10.0), latency_ms=parts.pop("latency_ms", 10.0))]
    settings = parts.pop("settings", Settings(warmup=1))
    scenario = parts.pop("scenario", None)
    sensors = NoSensors(**parts)
    return report_of(fixture_folder, CLIPS[:1], measurements, sensors=sensors, settings=settings, scenario=scenario)


def test_a_throttled_run_is_marked_and_with_strict_refused(fixture_folder):
    hot = {"zones": {}, "throttled": True, "reasons": ["oc3_event_cnt rose by 7"]}
    marked = validity(fixture_folder, thermal=hot)
    assert marked["validity"]["is_valid"]
    assert "the board throttled during the run: oc3_event_cnt rose by 7" in marked["validity"]["warnings"]
    assert "THROTTLED" in format_table(marked)
    refused = validity(fixture_folder, thermal=hot, settings=Settings(strict=True))
    assert not refused["validity"]["is_valid"]
    assert "NOT VALID: the board throttled" in format_table(refused)


def test_strict_wants_to_know(fixture_folder):
    unknown = {"zones": {}, "throttled": None, "reasons": []}
    assert validity(fixture_folder, thermal=unknown)["validity"]["is_valid"]
    refused = validity(fixture_folder, thermal=unknown, settings=Settings(strict=True))["validity"]
    assert refused["problems"] == ["strict: nothing here says whether the board throttled (no counters, no clocks)"]


def test_what_sensors_found_makes_the_run_not_valid(fixture_folder):
    found = validity(fixture_folder, problems=["swap use grew by 12 MiB"])["validity"]
    assert (found["is_valid"], found["problems"]) == (False, ["swap use grew by 12 MiB"])


def test_a_server_that_misses_its_target_is_not_valid(fixture_folder):
    settings = Settings(scenario="server", rate_per_s=5.0, target_latency_ms=20.0)
    report = validity(fixture_folder, latency_ms=30.0, settings=settings, scenario="server")
    assert report["validity"]["problems"] == [
        "p99 from arrival to text is 30.0 ms at 5.00 clips/s, the target is 20 ms: lower --rate"
    ]
    assert validity(fixture_folder, latency_ms=19.0, settings=settings, scenario="server")["validity"]["is_valid"]


def test_a_server_that_falls_behind_is_said_and_a_short_draw_is_not(fixture_folder):
    """4 clips of 10 ms each in 1 s: at 5/s drawn, waiting 500 ms in the middle means falling behind, 0 ms does not."""
    settings = Settings(scenario="server", rate_per_s=5.0)
    for waiting_ms, is_behind in ((500.0, True), (0.0, False)):
        report = report_of(
            fixture_folder,
            CLIPS,
            [measured(i % 2, i // 2, i, transcript("a", 10.0), waiting_ms=waiting_ms) for i in range(4)],
            run_s=1.0,
            settings=settings,
            scenario="server",
        )
        said = [text for text in report["validity"]["warnings"] if "above what the board can do" in text]
        assert bool(said) == is_behind


def test_ctrl_c_keeps_what_was_measured(fixture_folder):
    pytest.importorskip("onnxruntime")
    bundle = Bundle.load(fixture_folder)
    n_calls = []

    def interrupt(n_done, n_total):
        n_calls.append(n_done)
        if n_done == 4:
            raise KeyboardInterrupt

    report = run_bench(
        bundle, bundle.read_eval_clips(), Settings(warmup=0, repeats=9, power="none"), progress=interrupt
    )
    assert report["validity"]["problems"] == ["cut short by Ctrl-C or a signal after 4 clips"]
    assert sum(len(row["latency_ms"]) for row in report["utterances"]) == 4


def test_memory_counts_the_loading_of_the_model(fixture_folder, virtual_time, monkeypatch):
    """A model that takes 300 MiB for a moment while it is loaded, and gives it back; nothing else runs on this made-up system."""
    pytest.importorskip("onnxruntime")
    from edgeqlora_jetson.runtimes import open_runtime
    from edgeqlora_jetson.sensors.memory import Meminfo, MemoryMonitor

    used_mib = [1000.0]
    monkeypatch.setattr(
        MemoryMonitor, "_read", lambda self: (Meminfo(4000.0, 4000.0 - used_mib[0], None, None), used_mib[0])
    )

    def open_hungry(*args, **kwargs):
        used_mib[0] += 300
        virtual_time.sleep(0.8)
        used_mib[0] -= 300
        return open_runtime(*args, **kwargs)

    bundle = Bundle.load(fixture_folder)
    settings = Settings(warmup=0, repeats=1, power="none")
    report = run_bench(bundle, bundle.read_eval_clips(), settings, open_model=open_hungry)
    assert report["memory"]["peak_over_baseline"]["value"] == 300


def test_a_sensor_that_fails_does_not_take_the_run_with_it(fixture_folder, monkeypatch):
    pytest.importorskip("onnxruntime")
    from edgeqlora_jetson.sensors.memory import MemoryMonitor

    def fail(self):
        raise ValueError("odd meminfo")

    monkeypatch.setattr(MemoryMonitor, "poll", fail)
    monkeypatch.setattr(MemoryMonitor, "finish", fail)
    bundle = Bundle.load(fixture_folder)
    report = run_bench(bundle, bundle.read_eval_clips(), Settings(warmup=0, repeats=1, power="none"))
    assert report["latency_ms"]["total"]["p50"]["value"] > 0
    assert report["validity"]["problems"] == ["the memory sensors failed during the run: ValueError: odd meminfo"]
    assert "NOT VALID" in format_table(report)


def test_scenario_and_batch_follow_from_each_other(fixture_folder):
    bundle = Bundle.load(fixture_folder)
    assert choose_scenario(Settings()) == "single-stream"
    assert choose_scenario(Settings(batch_size=4)) == "offline"
    assert choose_batch(Settings(), bundle) == 1
    bundle.manifest["profile"] = {"max_batch": 6}
    assert choose_batch(Settings(scenario="offline"), bundle) == 6
    assert choose_batch(Settings(scenario="server"), bundle) == 1


def test_settings_out_of_range(fixture_folder):
    clips = Bundle.load(fixture_folder).read_eval_clips()
    for settings, message in (
        ({"repeats": 0}, "repeats=0, allowed 1 to"),
        ({"warmup": -1}, "warmup=-1, allowed 0 to 10000"),
        ({"batch_size": 0}, "batch_size=0, allowed 1 to 1024"),
        ({"idle_s": -1.0}, "idle_s=-1, allowed 0 to 3600"),
        ({"scenario": "multistream"}, "scenario 'multistream' is not known, allowed: single-stream, offline, server"),
        ({"scenario": "single-stream", "batch_size": 2}, "use --scenario offline"),
        ({"rate_per_s": 2.0}, "belong to the server scenario, this is single-stream"),
    ):
        with pytest.raises(UserError, match=message):
            check_settings(Settings(**settings), clips)
    with pytest.raises(UserError, match="no clips to measure on"):
        check_settings(Settings(), [])
