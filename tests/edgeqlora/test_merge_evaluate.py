"""Merging and scoring on a tiny model: the two candidates, what is refused, and one table for every kind of input."""

import json
from pathlib import Path

import pytest
import torch

from edgeqlora.errors import UserError
from edgeqlora.evaluate import evaluate, format_evaluation, kind_of
from edgeqlora.merge import merge, merge_candidate, nf4_round_trip
from edgeqlora.models.family import load_learner
from edgeqlora.settings import make_settings
from edgeqlora.train import train


@pytest.fixture(scope="module")
def adapter(tiny_model, clips, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("merge") / "adapter"
    given = {"base_model": str(tiny_model), "train": str(clips), "dev": str(clips.with_name("dev.jsonl")), "output": str(output)}
    train(
        make_settings({**given, "window_s": "1", "steps": 12, "batch_size": 4, "cache": "none", "learning_rate": 1e-2})
    )
    return output


def test_round_trip_is_what_the_4bit_layer_computes_with(tiny_model):
    plain, quantised = load_learner(str(tiny_model)).model, load_learner(str(tiny_model), quantise=True).model
    name = "model.encoder.layers.0.fc1"
    weight = plain.get_submodule(name).weight.detach()
    layer = quantised.get_submodule(name)
    expected = layer(torch.eye(weight.shape[1])).T - layer.bias.detach()[:, None]
    assert torch.allclose(nf4_round_trip(weight), expected, atol=1e-6)
    assert not torch.equal(nf4_round_trip(weight), weight)


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_dequantised_merge_rounds_the_weights_that_training_quantised(stored, adapter, tiny_model, tmp_path):
    """On a GPU training quantises a base in 16 bits: other 4-bit values than those of the base in 32 bits."""
    import shutil

    shutil.copytree(adapter, tmp_path / "adapter")
    card = json.loads((adapter / "card.json").read_text())
    card["computed_with"]["base_dtype"] = stored
    (tmp_path / "adapter" / "card.json").write_text(json.dumps(card))
    name = "model.encoder.layers.0.fc1"
    base = load_learner(str(tiny_model)).model.get_submodule(name).weight.detach()
    original, dequantised = (
        merge_candidate(str(tiny_model), tmp_path / "adapter", candidate).model.get_submodule(name).weight.detach()
        for candidate in ("original", "dequantised")
    )
    rounded = dequantised - (original - base)
    assert torch.allclose(rounded, nf4_round_trip(base.to(getattr(torch, stored)).float()), atol=1e-6)
    assert torch.allclose(rounded, nf4_round_trip(base), atol=1e-6) == (stored == "float32")


def test_dequantised_merge_computes_what_training_did(adapter, tiny_model):
    from peft import PeftModel

    from edgeqlora.models.quantised import keep_linear4bit_in_train_mode
    from edgeqlora_export.whisper.windowed import windowed

    trained = PeftModel.from_pretrained(load_learner(str(tiny_model), quantise=True).model, str(adapter))
    keep_linear4bit_in_train_mode(trained)
    trained.eval()
    merged = merge_candidate(str(tiny_model), adapter, "dequantised").model
    original = merge_candidate(str(tiny_model), adapter, "original").model
    inputs = {"input_features": torch.randn(1, 80, 100), "decoder_input_ids": torch.tensor([[1, 2, 3]])}
    logits = []
    for model in (trained, merged, original):
        with torch.no_grad(), windowed(model, 1.0):
            logits.append(model(**inputs).logits)
    assert torch.allclose(logits[0], logits[1], atol=1e-4)
    assert not torch.allclose(logits[0], logits[2], atol=1e-4)


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


def test_perplexity_of_a_random_model_is_about_its_vocabulary(tiny_model, clips):
    report = evaluate(str(tiny_model), str(clips), windows_s=[1.0])
    vocabulary = json.loads((tiny_model / "config.json").read_text())["vocab_size"]
    assert 0.5 * vocabulary < report["perplexity"]["value"] < 2 * vocabulary


def test_table_names_normaliser_and_worst_utterances(tiny_model, clips):
    report = evaluate(str(tiny_model), str(clips), windows_s=[1.0])
    table = format_evaluation(report, n_worst=2)
    assert "normaliser basic" in table
    assert "normaliser whisper-english" in table
    assert table.count("      said ") == 2
    assert "batches of 16" in table


def test_base_model_that_is_not_the_one_trained_on_is_refused(adapter, tiny_model, clips, tmp_path):
    import shutil

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
    import shutil

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
    import shutil

    copy = tmp_path / "adapter"
    shutil.copytree(adapter, copy)
    card = json.loads((copy / "card.json").read_text())
    card["settings"]["dev"] = ""
    (copy / "card.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="pass --dev, or choose with --candidate"):
        merge(copy, tmp_path / "out")


def test_kinds(adapter, tiny_model, tmp_path):
    assert kind_of(str(adapter)) == "adapter"
    assert kind_of(str(tiny_model)) == "model"
    with pytest.raises(UserError, match="is not a transformers model folder"):
        kind_of(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="holds a 'bert' model"):
        kind_of(str(tmp_path))
