"""Layers taken out: the model that is trained, scored, merged and exported is the same smaller one."""

import json

import pytest
import torch

from edgeqlora.demo import model_dir
from edgeqlora.errors import UserError
from edgeqlora.models.family import load_learner
from edgeqlora.models.fewer_layers import angular_distances, drop_layers, least_turning, parse_layers


def test_what_is_asked_for():
    assert parse_layers("") is None
    assert parse_layers("auto:2") == 2
    assert parse_layers("encoder:2,1 decoder:0") == {"encoder": [1, 2], "decoder": [0]}
    for text in ("encoder", "encoder:", "auto:0", "auto:x", "encoder:1 encoder:2", "encoder:-1", "1,2"):
        with pytest.raises(UserError, match="allowed are layer numbers by stack"):
            parse_layers(text)


def test_the_layers_that_stay_are_those_of_the_base(tiny_model):
    learner, whole = load_learner(str(tiny_model)), load_learner(str(tiny_model))
    drop_layers(learner, {"encoder": [0], "decoder": [1]})
    model, base = learner.model.model, whole.model.model
    assert (len(model.encoder.layers), len(model.decoder.layers)) == (1, 1)
    assert torch.equal(model.encoder.layers[0].fc1.weight, base.encoder.layers[1].fc1.weight)
    assert torch.equal(model.decoder.layers[0].fc1.weight, base.decoder.layers[0].fc1.weight)
    assert (learner.model.config.encoder_layers, learner.model.config.decoder_layers) == (1, 1)
    assert learner.blocks()["encoder"] == ["model.encoder.layers.0"]
    for dropped, text in (
        ({"encoder": [5]}, "the encoder has layers 0 to 0"),
        ({"encoder": [0]}, "at least one must stay"),
        ({"middle": [0]}, "'middle' is no stack of this model, allowed are encoder, decoder"),
    ):
        with pytest.raises(UserError, match=text):
            drop_layers(learner, dropped)


def test_the_layer_that_does_nothing_is_the_one_to_spare(tiny_model):
    learner = load_learner(str(tiny_model))
    idle = learner.model.model.encoder.layers[1]
    with torch.no_grad():
        for linear in (idle.self_attn.out_proj, idle.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
    features = torch.randn(1, 80, 100, generator=torch.Generator().manual_seed(0))
    batch = {"input_features": features, "decoder_input_ids": torch.tensor([[1, 2]]), "labels": torch.tensor([[2, 3]])}
    distances = angular_distances(learner, [{"name": "a", "n_valid": 60, "batch": batch}])
    assert distances[1] < 1e-3 < distances[0]
    assert least_turning(distances, 1) == [1]
    with pytest.raises(UserError, match="allowed is at most 1"):
        least_turning(distances, 2)


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_the_whole_line_with_fewer_layers(method, tiny_model, clips, command, tmp_path):
    adapter = tmp_path / "adapter"
    line = ["train", "-m", tiny_model, "--train", clips, "--dev", clips.parent / "dev.jsonl", "-o", adapter]
    line += [
        "--language",
        "en",
        "--steps",
        4,
        "--batch-size",
        4,
        "--window-s",
        1,
        "--cache",
        "none",
        "--method",
        method,
    ]
    code, said = command(*line, "--drop-layers", "auto:1")
    assert code == 0, said
    assert "angle that each encoder layer turns, in pi:" in said
    assert "taken out of the 2 encoder layers:" in said
    card = json.loads((adapter / "card.json").read_text())
    assert len(card["dropped_layers"]["encoder"]) == 1
    model = adapter
    if method == "qlora":
        model = tmp_path / "merged"
        code, said = command("merge", adapter, "-o", model)
        assert code == 0, said
        code, said = command("evaluate", adapter, "-d", clips, "--worst", 0)
        assert code == 0, said
    assert json.loads((model / "config.json").read_text())["encoder_layers"] == 1
    assert len(load_learner(str(model)).model.model.encoder.layers) == 1
    code, said = command("export", model, "-o", tmp_path / "bundle", "--window-s", 1, "--eval-clips", 2)
    assert code == 0, said


def test_a_decoder_without_a_layer_still_decodes_with_its_cache(command, tmp_path):
    """On the embedded model: places in the K/V cache are numbered anew."""
    speech = model_dir().parent / "speech"
    line = ["train", "-m", model_dir(), "--train", speech / "train.jsonl", "-o", tmp_path / "a", "--window-s", 3]
    code, said = command(*line, "--steps", 2, "--limit", 4, "--batch-size", 4, "--drop-layers", "decoder:0")
    assert code == 0, said
    code, said = command("evaluate", tmp_path / "a", "-d", speech / "dev.jsonl", "--limit", 4, "--worst", 0)
    assert code == 0, said
    code, said = command(
        "merge",
        tmp_path / "a",
        "-o",
        tmp_path / "m",
        "--candidate",
        "original",
        "--dev",
        speech / "dev.jsonl",
        "--limit",
        4,
    )
    assert code == 0, said
    export = ["export", tmp_path / "m", "-o", tmp_path / "b", "-d", speech / "dev.jsonl", "--eval-clips", 2]
    code, said = command(*export)  # its gate compares the bundle's tokens with torch's
    assert code == 0, said


def test_a_ctc_encoder_loses_layers_as_well(command, tmp_path):
    model, data = model_dir().parent / "model-wav2vec2", model_dir().parent / "speech/train.jsonl"
    line = ["train", "-m", model, "--train", data, "-o", tmp_path / "a", "--steps", 2, "--limit", 4, "--batch-size", 4]
    code, said = command(*line, "--drop-layers", "encoder:0", "--window-s", 3)
    assert code == 0, said
    code, said = command("merge", tmp_path / "a", "-o", tmp_path / "m", "--candidate", "original")
    assert code == 0, said
    base = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    assert json.loads((tmp_path / "m/config.json").read_text())["num_hidden_layers"] == base - 1
