"""`export --precision`: what of a model is int8, what a user is told, and a model that collapses in int8 is rescued."""

import json

import numpy as np
import pytest

from edgeqlora.demo import model_dir, speech_dir
from edgeqlora.export import export
from edgeqlora_jetson.audio.load import load_audio
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.commands.transcribe import format_info
from edgeqlora_jetson.runtimes import open_runtime
from edgeqlora_jetson.transcribe import Transcriber

WINDOW = ("--window-s", "3", "--eval-clips", 4)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """120 clips that the embedded model, which is not tuned, hears rightly: it is sure of them, in fp32 and in int8."""
    bundle = tmp_path_factory.mktemp("known") / "fp32"
    rows = [json.loads(line) for line in (speech_dir() / "train.jsonl").read_text().splitlines()]
    export(
        str(model_dir()), bundle, data=str(speech_dir() / "dev.jsonl"), window_s="3", n_eval=1, margin_s="off", precision="fp32",
        say=lambda line: None,
    )  # fmt: skip
    transcriber = Transcriber(Bundle.load(bundle), open_runtime(Bundle.load(bundle)))
    for row in rows:
        row["audio"] = str(speech_dir() / row["audio"])
    right = [
        row for row in rows if transcriber.transcribe(load_audio(row["audio"])).text.lower() == row["text"].lower()
    ]
    path = bundle.parent / "known.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in right[:120]))
    return path


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The embedded model with two outlier channels in one layer: the same function in fp32, noise in int8."""
    import torch

    from edgeqlora.models.family import load_learner

    folder = tmp_path_factory.mktemp("planted")
    learner = load_learner(str(model_dir()))
    layer = learner.model.model.encoder.layers[1]
    with torch.no_grad():
        for channel in (3, 11):
            for part in (layer.final_layer_norm.weight, layer.final_layer_norm.bias):
                part[channel] *= 5000
            layer.fc1.weight[:, channel] /= 5000
    learner.model.save_pretrained(folder)
    learner.processor.save(folder)
    return folder


def test_a_model_that_collapses_in_int8_keeps_the_part_that_does_it(command, known, planted, tmp_path):
    typed = ("export", planted, "-d", known, *WINDOW, "--margin-s", "off")
    code, said = command(*typed, "-o", tmp_path / "no", "--precision", "int8")
    assert code == 2
    assert "precision int8 was asked for, and " in said
    assert "pass --precision auto, which keeps in fp32 what costs most, or a higher --max-wer-increase" in said
    assert not (tmp_path / "no").exists()
    code, said = command(*typed, "-o", tmp_path / "b", "--max-wer-increase", 2)
    assert code == 0, said
    bundle = Bundle.load(tmp_path / "b")
    found = bundle.manifest["precision"]
    assert "encoder/layers.1/mlp" in found["fp32"]
    assert len(found["int8"]) > len(found["fp32"]), "the others are int8"
    assert max(found["sensitivity"], key=found["sensitivity"].get) == "encoder/layers.1/mlp"
    assert found["tried"][0]["int8"] == [], "fp32 first"
    assert found["tried"][1]["refused"], "all of it"
    chosen = next(row for row in found["tried"] if row["int8"] == found["int8"])
    assert chosen["refused"] is None
    assert chosen["increase"] <= 2
    assert bundle.is_int8
    assert (tmp_path / "b" / "precision.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in (tmp_path / "b").glob("*.onnx*")) == ["decoder.onnx", "encoder.onnx"]
    code, said = command("evaluate", tmp_path / "b", "-d", known, "-o", tmp_path / "report.json")
    assert code == 0, said
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["wer"]["basic-unicode"]["value"] == pytest.approx(chosen["wer"], abs=1.0)


def test_int8_is_taken_where_it_costs_nothing_and_said_everywhere(command, known, tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(known.read_text().splitlines(keepends=True)[:8]))
    code, said = command(
        "export", model_dir(), "-d", few, *WINDOW, "-o", tmp_path / "b", "--precision", "int8", "--max-wer-increase", 5
    )
    assert code == 0, said
    assert "21 of 21 parts in int8: error rate " in said
    bundle = Bundle.load(tmp_path / "b")
    assert bundle.manifest["precision"]["fp32"] == []
    assert {graph["precision"] for graph in bundle.manifest["graphs"].values()} == {"int8"}
    sizes = [row["bytes"] for row in bundle.manifest["precision"]["tried"]]
    assert sizes[1] < 0.6 * sizes[0]
    assert "Precision   21 int8; error rate " in format_info(bundle)
    code, said = command("bench", tmp_path / "b", "--repeats", 1, "-o", tmp_path / "r.json")
    assert code == 0, said
    report = json.loads((tmp_path / "r.json").read_text())
    assert set(report["bundle"]["precision"].values()) == {"int8"}
    code, said = command(
        "bench", tmp_path / "b", "--scenario", "offline", "--repeats", 1, "-o", tmp_path / "offline.json"
    )
    assert code == 0, said
    assert json.loads((tmp_path / "offline.json").read_text())["method"]["batch_size"] == 8
    code, said = command(
        "bench", tmp_path / "b", "--batch", 2, "--threads", 2, "--repeats", 1, "-o", tmp_path / "r2.json"
    )
    assert code == 0, said
    assert ", batch 2, 2 threads in 2 streams; " in said
    together = json.loads((tmp_path / "r2.json").read_text())
    assert (together["method"]["streams"], together["method"]["threads"]) == (2, 1)
    texts = [row["hypothesis"] for row in report["utterances"]]
    assert [row["hypothesis"] for row in together["utterances"]] == texts, "a text does not depend on its neighbours"
    code, said = command("evaluate", tmp_path / "b", "-d", few)
    assert code == 0, said
    assert "parts of the graphs: 21 int8; error rate +" in said
    transcriber = Transcriber(bundle, open_runtime(bundle))
    clips = [load_audio(path) for path in sorted((tmp_path / "b" / "eval").glob("*.wav"))]
    alone = [transcriber.transcribe(clip).text for clip in clips]
    assert [one.text for one in transcriber.transcribe_batch([np.float32(clip) for clip in clips])] == alone


def test_few_words_keep_fp32_and_say_why(command, tmp_path):
    few = tmp_path / "few.jsonl"
    rows = [json.loads(line) for line in (speech_dir() / "dev.jsonl").read_text().splitlines()][:12]
    few.write_text("".join(json.dumps({**row, "audio": str(speech_dir() / row["audio"])}) + "\n" for row in rows))
    code, said = command("export", model_dir(), "-d", few, *WINDOW, "-o", tmp_path / "b", "--margin-s", "off")
    assert code == 0, said
    assert "the graphs stay in fp32: " in said
    assert (
        "words are too few to see what int8 costs, 250 are needed: give more clips with --data, or pass --precision int8"
        in said
    )
    bundle = Bundle.load(tmp_path / "b")
    assert bundle.manifest["precision"]["int8"] == []
    assert "are too few" in bundle.manifest["precision"]["reason"]
    assert not bundle.is_int8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--precision", "int4"), "precision='int4': for cpu allowed are auto, int8, fp32"),
        (("--precision", "fp16"), "precision='fp16': for cpu allowed are auto, int8, fp32"),
        (
            ("--max-wer-increase", "-1"),
            "max_wer_increase=-1: allowed are 0 to 100 points of the error rate, such as 0.5",
        ),
        (
            ("--precision", "int8", "--target", "jetson-nano"),
            "precision='int8': for jetson-nano allowed are auto, fp16, fp32",
        ),
        (
            ("--compile-check",),
            "--compile-check compiles graphs for TensorRT, and those of cpu are for onnxruntime on a CPU",
        ),
    ],
)
def test_wrong_settings_are_refused_before_any_work(command, tmp_path, flags, message):
    code, said = command("export", model_dir(), "-d", tmp_path, "-o", tmp_path / "b", *flags)
    assert code == 2
    assert message in said
    assert "loading" not in said


def test_a_ctc_model_is_int8_too(command, tmp_path):
    """The embedded wav2vec2 is made of convolutions and linear layers, of which the latter are int8."""
    code, said = command(
        "export",
        model_dir("wav2vec2"),
        "-d",
        speech_dir() / "dev.jsonl",
        *WINDOW,
        "-o",
        tmp_path / "b",
        "--max-wer-increase",
        3,
    )
    assert code == 0, said
    bundle = Bundle.load(tmp_path / "b")
    found = bundle.manifest["precision"]
    assert found["int8"], "some of it"
    assert all(part.startswith("ctc/") for part in [*found["int8"], *found["fp32"]])
    chosen = next(row for row in found["tried"] if row["int8"] == found["int8"])
    assert chosen["refused"] is None
    code, said = command("evaluate", tmp_path / "b", "-d", speech_dir() / "dev.jsonl", "--limit", 40)
    assert code == 0, said
