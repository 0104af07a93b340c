"""IA3: vectors where the family says that keys, values and feed-forward are, trained, resumed, merged."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeqlora.errors import UserError
from edgeqlora.lora.methods.ia3 import ia3_config
from edgeqlora.settings import make_settings
from edgeqlora.train import train
from edgeqlora.training.partial_run import partial_folder

ROLES = {"q": "query", "k": "key", "v": "value", "o": "output", "up": "inner", "down": "outer"}


def line_of(model, clips, output, *more):
    data = ["--train", clips, "--dev", clips.with_name("dev.jsonl"), "--cache", "none", "--window-s", 1]
    return ["train", "-m", model, "-o", output, *data, "--method", "ia3", "--batch-size", 4, *more]


def test_vectors_are_on_keys_values_and_the_outer_linear():
    config = ia3_config(["a.0.q", "a.0.k", "a.0.v", "a.0.o", "a.0.up", "a.0.down"], ROLES)
    assert config.target_modules == {"a.0.k", "a.0.v", "a.0.down"}
    assert config.feedforward_modules == {"a.0.down"}
    with pytest.raises(UserError, match="method='ia3' scales keys, values and feed-forward, and `adapt` leaves none"):
        ia3_config(["a.0.q"], ROLES)


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_the_line_from_training_to_the_merged_model(bits, tiny_model, clips, command, tmp_path):
    held = ["--bits", bits] if bits else []
    code, said = command(*line_of(tiny_model, clips, tmp_path / "a", "--steps", 8, "--eval-every", 8, *held))
    assert code == 0, said
    card = json.loads((tmp_path / "a/card.json").read_text())
    # Two encoder layers and two decoder layers: keys, values (64) and feed-forward (128), in the decoder keys and values twice.
    assert card["figures"]["trainable_parameters"]["value"] == 2 * (64 + 64 + 128) + 2 * (4 * 64 + 128)
    assert not (tmp_path / "a/ranks.json").exists()
    vectors = load_file(tmp_path / "a/adapter_model.safetensors")
    assert len(vectors) == 2 * 3 + 2 * 5
    assert not [name for name, vector in vectors.items() if (vector == 1).all()], "a vector was not trained"
    candidate = "dequantised" if bits else "original"
    code, said = command("merge", tmp_path / "a", "-o", tmp_path / "m", "--candidate", candidate)
    assert code == 0, said
    perplexity = {}
    for source in ("a", "m"):
        code, said = command("evaluate", tmp_path / source, "-d", clips, "-o", tmp_path / f"{source}.json")
        assert code == 0, said
        perplexity[source] = json.loads((tmp_path / f"{source}.json").read_text())["perplexity"]["value"]
    assert perplexity["m"] == pytest.approx(perplexity["a"], rel=2e-5)
    code, said = command("merge", tmp_path / "a", "-o", tmp_path / "n", "--candidate", "dequantised")
    assert (code == 0) == bool(bits), said
    if not bits:
        assert "candidate='dequantised' is for adapters trained on a quantised base" in said


def test_what_the_flag_places_and_a_ctc_model(command, tmp_path):
    from edgeqlora.demo import model_dir, speech_dir

    data = speech_dir() / "dev.jsonl"
    model = model_dir().parent / "model-wav2vec2"
    line = ["train", "-m", model, "--train", data, "--limit", 8, "--cache", "none", "--method", "ia3", "--steps", 2]
    code, said = command(*line, "--batch-size", 2, "-o", tmp_path / "a", "--adapt", "upper:attention")
    assert code == 0, said
    names = {name.rpartition("layers.")[2] for name in load_file(tmp_path / "a/adapter_model.safetensors")}
    n_layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    assert names == {
        f"{i}.attention.{part}.ia3_l" for i in range(n_layers // 2, n_layers) for part in ("k_proj", "v_proj")
    }
    code, said = command("merge", tmp_path / "a", "-o", tmp_path / "m")
    assert code == 0, said


def test_a_run_that_broke_off_ends_with_the_same_vectors(tiny_model, clips, tmp_path, break_off):
    given = {"base_model": str(tiny_model), "train": str(clips), "method": "ia3", "steps": 6, "batch_size": 4}
    given |= {"window_s": "1", "cache": "none", "eval_every": 2, "dev": str(clips.with_name("dev.jsonl"))}
    train(make_settings({**given, "output": str(tmp_path / "straight")}))
    settings = make_settings({**given, "output": str(tmp_path / "broken")})
    break_off(settings, after=5)
    assert partial_folder(tmp_path / "broken").is_dir()
    train(settings, resume=True)
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("straight", "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_vectors_that_were_not_trained_are_refused(tiny_model, clips, command, tmp_path):
    code, said = command(*line_of(tiny_model, clips, tmp_path / "a", "--steps", 1))
    assert code == 0, said
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b/card.json").unlink()
    path = tmp_path / "b/adapter_model.safetensors"
    save_file({name: torch.ones_like(value) for name, value in load_file(path).items()}, path)
    code, said = command("evaluate", tmp_path / "b", "-d", clips, "--window-s", 1)
    assert (code, "or every vector 1, so it changes nothing" in said) == (2, True), said


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--ranks", "uniform:4"], "ranks='uniform:4' is of LoRA, and method='ia3' has none: allowed with qlora, lora"),
        (["--lora-alpha", 8], "lora_alpha=8.0 is of LoRA, and method='ia3' has none"),
        (["--lora-dropout", 0.1], "lora_dropout=0.1 is of LoRA"),
        (["--entropy-weight", 0.1], "entropy_weight=0.1 is of LoRA"),
    ],
)
def test_what_is_of_lora_is_refused(flags, text, tiny_model, clips, command, tmp_path):
    code, said = command(*line_of(tiny_model, clips, tmp_path / "a", *flags))
    assert (code, text in said) == (2, True), said
    assert not list(tmp_path.iterdir())
