"""Merging and scoring on a tiny model: the two candidates, what is refused, and one table for every kind of input."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from edgeqlora.errors import UserError
from edgeqlora.evaluate import evaluate, kind_of
from edgeqlora.evaluation.table import format_evaluation
from edgeqlora.lora.loading import load_adapted, open_adapter
from edgeqlora.merge import merge, merge_candidate
from edgeqlora.models.family import load_learner
from edgeqlora.models.quantised import nf4_round_trip
from edgeqlora.settings import make_settings
from edgeqlora.train import train
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.commands.transcribe import format_info


@pytest.fixture(scope="module")
def adapter(tiny_model, clips, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("merge") / "adapter"
    given = {
        "base_model": str(tiny_model),
        "train": str(clips),
        "dev": str(clips.with_name("dev.jsonl")),
        "output": str(output),
    }
    train(
        make_settings({**given, "window_s": "1", "steps": 12, "batch_size": 4, "cache": "none", "learning_rate": 1e-2})
    )
    return output


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip_is_what_the_4bit_layer_computes_with(dtype, tiny_model):
    """A GPU trains on weights that were quantised from, and are dequantised to, 16 bits."""
    plain = load_learner(str(tiny_model)).model
    quantised = load_learner(str(tiny_model), quantise=True, dtype=dtype).model
    name = "model.encoder.layers.0.fc1"
    weight = plain.get_submodule(name).weight.detach()
    layer = quantised.get_submodule(name)
    torch_dtype = getattr(torch, dtype)
    expected = layer(torch.eye(weight.shape[1], dtype=torch_dtype)).T - layer.bias.detach()[:, None]
    assert torch.allclose(
        nf4_round_trip(weight, torch_dtype), expected.float(), atol=1e-6 if dtype == "float32" else 1e-3
    )
    assert not torch.equal(nf4_round_trip(weight, torch_dtype), weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dequantised_merge_computes_what_training_did(dtype, adapter, tmp_path):
    from edgeqlora_export.whisper.windowed import windowed

    shutil.copytree(adapter, tmp_path / "adapter")
    card = json.loads((adapter / "card.json").read_text())
    assert card["base_dtype"] == "float32"
    (tmp_path / "adapter" / "card.json").write_text(json.dumps({**card, "base_dtype": dtype}))
    opened = open_adapter(tmp_path / "adapter")
    trained = load_adapted(opened, "quantised").model.get_base_model()
    merged = merge_candidate(opened, "dequantised", tmp_path / "dequantised").model
    original = merge_candidate(opened, "original", tmp_path / "original").model
    inputs = {"input_features": torch.randn(1, 80, 100), "decoder_input_ids": torch.tensor([[1, 2, 3]])}
    logits = []
    for model in (trained, merged, original):
        with torch.no_grad(), windowed(model, 1.0):
            logits.append(
                model(
                    **{k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
                ).logits.float()
            )
    near, far = ((logits[0] - other).abs().max() for other in logits[1:])
    assert near < (1e-4 if dtype == "float32" else 0.5 * far)
    assert far > 1e-4


def test_merge_scores_both_and_writes_a_plain_folder(adapter, clips, tmp_path):
    card = merge(adapter, tmp_path / "merged", say=lambda text: None)
    assert set(card["candidates"]) == {"dequantised", "original"}
    losses = {name: c["loss"]["value"] for name, c in card["candidates"].items()}
    wers = {name: c["wer"]["value"] for name, c in card["candidates"].items()}
    assert card["chosen"] == min(losses, key=lambda name: (wers[name], losses[name]))
    model = load_learner(str(tmp_path / "merged")).model
    assert model.config.max_source_positions == 1500
    report = evaluate(str(tmp_path / "merged"), str(clips), output=tmp_path / "report.json")
    assert report["windows_s"] == [1.0]  # the window of training travels with the card
    assert len((tmp_path / "report.jsonl").read_text().splitlines()) == 8


def test_adapter_and_its_merge_say_the_same(adapter, clips, tmp_path):
    merge(adapter, tmp_path / "merged", candidate="dequantised", say=lambda text: None)
    a = evaluate(str(adapter), str(clips))
    b = evaluate(str(tmp_path / "merged"), str(clips))
    assert [u["hypothesis"] for u in a["utterances"]] == [u["hypothesis"] for u in b["utterances"]]
    assert a["perplexity"]["value"] == pytest.approx(b["perplexity"]["value"], rel=1e-3)


def test_the_noise_of_an_nf4_base_is_that_of_its_own_weights(adapter, clips):
    """Weights that are NF4 already lose nothing a second time: without the base's own, no frame would merge."""
    figures = evaluate(str(adapter), str(clips), merge_frames=1e9)["merged_frames"]
    assert figures["speech"]["value"] > 50
    assert figures["without"]["perplexity"] == evaluate(str(adapter), str(clips))["perplexity"]


def test_perplexity_of_a_random_model_is_about_its_vocabulary(tiny_model, clips):
    report = evaluate(str(tiny_model), str(clips), windows_s=[1.0])
    vocabulary = json.loads((tiny_model / "config.json").read_text())["vocab_size"]
    assert 0.5 * vocabulary < report["perplexity"]["value"] < 2 * vocabulary


def test_table_names_normaliser_and_worst_utterances(tiny_model, clips):
    report = evaluate(str(tiny_model), str(clips), windows_s=[1.0])
    table = format_evaluation(report, n_worst=2)
    assert "normaliser basic-unicode" in table
    assert "normaliser whisper-english" in table
    assert table.count("      said ") == 2
    assert "batches of 16" in table


def test_worst_shows_where_an_utterance_differs_and_not_all_of_it(tiny_model, clips, monkeypatch):
    from typer.testing import CliRunner

    from edgeqlora.cli.main import app
    from edgeqlora.evaluation.recognise import Recogniser

    words = [f"word{i}" for i in range(600)]
    said, got = " ".join(words), " ".join([*words[:300], "lamp", *words[301:500], *words[501:], "end"])
    rows = [json.loads(line) for line in clips.read_text().splitlines()][:1]
    manifest = clips.parent / "long.jsonl"
    manifest.write_text(json.dumps({**rows[0], "text": said}) + "\n")
    recognise = Recogniser.recognise

    def recognise_long(self, rows, *args, **flags):
        return dataclasses.replace(recognise(self, rows, *args, **flags), texts=[got])

    monkeypatch.setattr(Recogniser, "recognise", recognise_long)
    done = CliRunner().invoke(
        app, ["evaluate", str(tiny_model), "-d", str(manifest), "--window-s", "1", "--worst", "1"]
    )
    assert done.exit_code == 0, done.output
    none = CliRunner().invoke(
        app, ["evaluate", str(tiny_model), "-d", str(manifest), "--window-s", "1", "--worst", "0"]
    )
    assert (none.exit_code, "worst of" in none.output) == (0, False)
    shown = done.output[done.output.index("worst of") :].splitlines()[1:8]
    assert shown[0].startswith("    3 errors")
    assert shown[1:] == [
        "      said ... word297 word298 word299 [word300] word301 word302 word303 ...",
        "      got  ... word297 word298 word299 [lamp] word301 word302 word303 ...",
        "      said ... word497 word498 word499 [word500] word501 word502 word503 ...",
        "      got  ... word497 word498 word499 [] word501 word502 word503 ...",
        "      said ... word597 word598 word599 []",
        "      got  ... word597 word598 word599 [end]",
    ]


def test_a_merge_does_not_replace_what_it_reads(adapter, tmp_path):
    import shutil

    shutil.copytree(adapter, tmp_path / "out" / "adapter")
    (tmp_path / "out" / "card.json").write_text('{"schema": "edgeqlora.card/1"}')
    with pytest.raises(UserError, match="it is or holds what this command reads"):
        merge(tmp_path / "out" / "adapter", tmp_path / "out", candidate="original", overwrite=True)
    with pytest.raises(UserError, match="it is or holds what this command reads"):
        merge(tmp_path / "out" / "adapter", tmp_path / "out" / "adapter", candidate="original", overwrite=True)


def test_base_model_that_is_not_the_one_trained_on_is_refused(adapter, tiny_model, clips, tmp_path):
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    weights = load_file(other / "model.safetensors")
    first = sorted(weights)[0]
    weights[first] = weights[first] + 1e-3
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="is not the base model that the adapter was trained on"):
        merge(adapter, tmp_path / "merged", base_model=str(other), say=lambda text: None)
    assert not (tmp_path / "merged").exists()
    with pytest.raises(UserError, match="pass --base-model with the right one"):
        evaluate(str(adapter), str(clips), base_model=str(other))


def test_an_output_that_would_be_lost_is_refused_before_any_scoring(adapter, tiny_model, clips, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match="exists: choose another folder, or pass --overwrite"):
        merge(adapter, tmp_path / "out")
    with pytest.raises(UserError, match=r"name the report \.json"):
        evaluate(str(tiny_model), str(clips), output=tmp_path / "report.jsonl")


def test_dequantised_is_only_for_adapters_of_a_4bit_base(adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "adapter")
    card = json.loads((tmp_path / "adapter" / "card.json").read_text())
    (tmp_path / "adapter" / "card.json").write_text(json.dumps({**card, "method": "lora"}))
    with pytest.raises(UserError, match="allowed is 'original'"):
        merge(tmp_path / "adapter", tmp_path / "out", candidate="dequantised")


def test_what_is_no_adapter_is_refused(tiny_model, tmp_path):
    with pytest.raises(UserError, match="nothing to merge, export it as it is"):
        merge(tiny_model, tmp_path / "out")
    with pytest.raises(UserError, match="not an adapter folder"):
        merge(tmp_path, tmp_path / "out")


def test_no_dev_data_asks_for_it(adapter, tmp_path):
    copy = tmp_path / "adapter"
    shutil.copytree(adapter, copy)
    card = json.loads((copy / "card.json").read_text())
    card["settings"]["dev"] = ""
    (copy / "card.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="pass --dev, or choose with --candidate"):
        merge(copy, tmp_path / "out")


def test_dev_clips_longer_than_the_window_have_no_loss(tiny_model, clips, command, tmp_path):
    """A mean over no clip was said as loss 0.0000, and won every choice by loss."""
    long = tmp_path / "long.wav"
    soundfile.write(long, np.random.default_rng(0).normal(0, 0.1, 3 * 16000), 16000)
    dev = tmp_path / "dev.jsonl"
    dev.write_text(json.dumps({"audio": str(long), "text": "stop"}) + "\n")
    line = [
        "train",
        "-m",
        tiny_model,
        "--train",
        clips,
        "--dev",
        dev,
        "--window-s",
        1,
        "--language",
        "en",
        "--cache",
        "none",
    ]
    line += ["--steps", 4, "--batch-size", 4, "--eval-every", 4, "-o", tmp_path / "a"]
    code, said = command(*line, "--choose-by", "loss")
    assert (code, "choose_by='loss', and none of 1 dev clips fits the window of 1 s" in said) == (2, True), said
    code, said = command(*line)
    assert (code, "loss -- (1 clips" in said) == (0, True), said
    assert json.loads((tmp_path / "a/card.json").read_text())["dev_loss"]["reason"] == "no dev clip fits a window whole"
    code, said = command("merge", tmp_path / "a", "-o", tmp_path / "m")
    assert (code, "loss -- (1 clips)" in said) == (0, True), said
    candidates = json.loads((tmp_path / "m/card.json").read_text())["candidates"]
    assert {one["loss"]["value"] for one in candidates.values()} == {None}


def test_kinds(adapter, tiny_model, tmp_path):
    assert kind_of(str(adapter)) == "adapter"
    assert kind_of(str(tiny_model)) == "model"
    with pytest.raises(UserError, match="is not a transformers model folder"):
        kind_of(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="holds a 'bert' model"):
        kind_of(str(tmp_path))


def test_weights_that_are_not_those_of_the_card_are_refused_where_they_are_used(adapter, clips, command, tmp_path):
    from safetensors.torch import load_file, save_file

    assert command("merge", adapter, "-o", tmp_path / "merged", "--candidate", "original")[0] == 0
    shutil.copytree(adapter, tmp_path / "adapter")
    for folder, name in (("adapter", "adapter_model.safetensors"), ("merged", "model.safetensors")):
        weights = load_file(tmp_path / folder / name)
        save_file({key: 1.01 * value for key, value in weights.items()}, tmp_path / folder / name, {"format": "pt"})
    uses = [
        ("evaluate", tmp_path / "adapter", "-d", clips),
        ("merge", tmp_path / "adapter", "-o", tmp_path / "out"),
        ("evaluate", tmp_path / "merged", "-d", clips),
        ("export", tmp_path / "merged", "-d", clips, "-o", tmp_path / "out"),
        ("train", "-m", tmp_path / "merged", "--train", clips, "-o", tmp_path / "out", "--steps", 2),
    ]
    for arguments in uses:
        code, said = command(*arguments)
        assert (code, "card.json recorded (another sha256)" in said) == (2, True), f"{arguments[0]}: {said}"


def test_perplexity_of_a_diverged_model_is_null_with_the_reason(tiny_model, clips, command, tmp_path):
    model = tmp_path / "model"
    learner = load_learner(str(tiny_model))
    with torch.no_grad():
        learner.model.proj_out.weight *= 1e6
    learner.model.save_pretrained(model)
    learner.processor.save(model)
    code, said = command("evaluate", model, "-d", clips, "--window-s", 1, "-o", tmp_path / "r.json")
    assert code == 0, said
    perplexity = json.loads((tmp_path / "r.json").read_text())["perplexity"]
    assert perplexity["value"] is None
    assert "diverged" in perplexity["reason"]
    assert "diverged" in said
    with torch.no_grad():
        learner.model.proj_out.weight *= torch.nan
    learner.model.save_pretrained(model)
    code, said = command("evaluate", model, "-d", clips, "--window-s", 1)
    assert (code, "the decoder in float32 answers NaN or infinity" in said) == (2, True), said


def test_a_text_that_repeats_itself_is_cut_and_counted_of_model_and_bundle(tiny_model, clips, command, tmp_path):
    model, learner = tmp_path / "model", load_learner(str(tiny_model))
    word = learner.processor.text_ids("stop")[0]
    with torch.no_grad():  # whatever it hears, this is the next token
        learner.model.model.decoder.layer_norm.weight.zero_()
        learner.model.model.decoder.layer_norm.bias.copy_(learner.model.proj_out.weight[word] * 100)
    learner.model.save_pretrained(model)
    learner.processor.save(model)
    code, said = command(
        "export", model, "-d", clips, "--window-s", 1, "-o", tmp_path / "bundle", "--target", "cpu", "--language", "en"
    )
    assert code == 0, said
    for source, window in ((model, ("--window-s", 1)), (tmp_path / "bundle", ())):
        report = tmp_path / f"{source.name}.json"
        code, said = command("evaluate", source, "-d", clips, *window, "-o", report)
        assert code == 0, said
        assert "8 texts repeated themselves or ran into the limit of tokens: their ends are missing" in said
        assert json.loads(report.read_text())["n_incomplete"] == 8
        lines = report.with_suffix(".jsonl").read_text().splitlines()
        assert {json.loads(line)["hypothesis"] for line in lines} == {learner.tokenizer.decode([word]).strip()}


def test_a_window_that_a_model_was_not_tuned_in_is_said_by_export_info_and_evaluate(adapter, clips, command, tmp_path):
    told = "tuned with windows of 1 s, not 2 s, where it may have forgotten what its base could"
    merge(adapter, tmp_path / "merged", say=lambda line: None, candidate="original")
    typed = ("export", tmp_path / "merged", "-d", clips, "--target", "cpu", "--language", "en", "--eval-clips", 1)
    code, said = command(*typed, "-o", tmp_path / "bundle", "--window-s", "1,2")
    assert code == 0, said
    assert f"{told}: evaluate the bundle on clips of those lengths" in said
    assert json.loads((tmp_path / "bundle" / "manifest.json").read_text())["audio"]["tuned_windows_s"] == [1.0]
    assert f"Tuning      {told}" in format_info(Bundle.load(tmp_path / "bundle"))
    for source, window in (
        (tmp_path / "bundle", ()),
        (adapter, ("--window-s", 2)),
        (tmp_path / "merged", ("--window-s", 2)),
    ):
        code, said = command("evaluate", source, "-d", clips, "--limit", 2, *window)
        assert (code, told in said) == (0, True), said
    for line in (("evaluate", adapter, "-d", clips, "--limit", 2), (*typed, "-o", tmp_path / "own")):
        code, said = command(*line)
        assert (code, "tuned with" in said) == (0, False), said
    assert "tuned_windows_s" not in json.loads((tmp_path / "own" / "manifest.json").read_text())["audio"]


def test_nothing_of_third_parties_is_on_the_screen(adapter, clips, tmp_path):
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "edgeqlora", "merge", adapter, "-o", tmp_path / "merged"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    assert [line.split()[0] for line in lines] == ["dequantised", "original", "Done:"]


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("Error while deserializing header: header too large", "damaged or cut short"),
        ("Error while serializing: I/O error: No space left on device", "make room"),
    ],
)
def test_weights_that_cannot_be_read_are_no_full_disk(text, advice):
    from safetensors import SafetensorError

    from edgeqlora.cli.messages import explain

    said = explain(SafetensorError(text))
    assert advice in said
    assert ("make room" in said) == (advice == "make room")
