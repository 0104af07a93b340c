"""A base in 8 bits: what it computes with, its gradients, and the line from training to the merged model."""

import json

import bitsandbytes
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from edgeqlora.errors import UserError
from edgeqlora.lora.entropy import AdapterEntropy
from edgeqlora.lora.loading import load_adapted, open_adapter
from edgeqlora.models.family import load_learner
from edgeqlora.models.int8 import int8_round_trip, values_of
from edgeqlora.models.quantised import round_trip
from edgeqlora.settings import make_settings
from edgeqlora_export.whisper.windowed import windowed

INPUTS = {
    "input_features": torch.randn(2, 80, 100, generator=torch.Generator().manual_seed(0)),
    "decoder_input_ids": torch.tensor([[1, 2, 3, 400]] * 2),
}


def test_a_row_is_its_largest_weight_in_127_steps():
    weight = torch.tensor([[127.0, -63.6, 0.4, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert int8_round_trip(weight, torch.float32).tolist() == [[127.0, -64.0, 0.0, 1.0], [0.0] * 4]
    rows, scales = torch.tensor([[127, -1]], dtype=torch.int8), torch.tensor([0.5])
    assert torch.allclose(values_of(rows, scales, torch.float32), torch.tensor([[0.5, -0.5 / 127]]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_linear_computes_with_its_values_in_every_mode(dtype, training, tiny_model):
    """bitsandbytes' own forward rounds the inputs to int8 as well, outside training on a CPU, and always on a GPU."""
    torch_dtype = getattr(torch, dtype)
    name = "model.encoder.layers.0.fc1"
    weight = load_learner(str(tiny_model)).model.get_submodule(name).weight.detach()
    layer = load_learner(str(tiny_model), quantise=True, dtype=dtype, bits=8).model.get_submodule(name).train(training)
    assert isinstance(layer, bitsandbytes.nn.Linear8bitLt)
    assert layer.weight.dtype == torch.int8
    values = int8_round_trip(weight, torch_dtype)
    assert 0 < (values - weight).norm() / weight.norm() < 0.01
    assert torch.equal(round_trip(weight, torch_dtype, 8), values)
    x = (3 * torch.randn(2, 7, weight.shape[1], generator=torch.Generator().manual_seed(1))).to(torch_dtype)
    x.requires_grad_()
    gradient = torch.randn(2, 7, weight.shape[0], generator=torch.Generator().manual_seed(2)).to(torch_dtype)
    out = layer(x)
    out.backward(gradient)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-2, "atol": 1e-2}
    assert torch.allclose(out.float(), x.detach().float() @ values.T + layer.bias.float(), **tolerance)
    assert torch.allclose(x.grad.float(), gradient.float() @ values, **tolerance)


def _with_lora(model):
    torch.manual_seed(1)
    model = get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "fc1", "fc2"], init_lora_weights=False)
    )
    return model, {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_adapters_are_those_on_the_dequantised_base(training, tiny_model):
    plain = load_learner(str(tiny_model))
    with torch.no_grad():
        for name, module in plain.model.named_modules():
            if isinstance(module, torch.nn.Linear) and not name.startswith(plain.unquantised):
                module.weight.copy_(int8_round_trip(module.weight, torch.float32))
    found = []
    for base in (load_learner(str(tiny_model), quantise=True, bits=8).model, plain.model):
        model, adapters = _with_lora(base)
        model.train(training)
        with windowed(model, 1.0):
            logits = model.get_base_model()(**INPUTS).logits
        logits.logsumexp(-1).sum().backward()
        found.append((logits.detach(), {name: p.grad for name, p in adapters.items()}))
        states = {state.name: state.relative_size for state in AdapterEntropy(model).states()}
        found[-1] += (states,)
    (ours, gradients, sizes), (wanted, reference, reference_sizes) = found
    assert torch.allclose(ours, wanted, atol=1e-5)
    assert len(reference) == 2 * 2 * (4 + 6)
    for name, gradient in reference.items():
        assert (gradients[name] - gradient).norm() <= 1e-4 * gradient.norm(), name
    assert sizes == pytest.approx(reference_sizes, rel=1e-4)


def test_the_line_from_training_to_the_merged_model(tiny_model, clips, command, tmp_path):
    line = ["train", "-m", tiny_model, "--train", clips, "--dev", clips.with_name("dev.jsonl"), "--cache", "none"]
    line += ["--window-s", 1, "--batch-size", 4, "--lr", "1e-2", "--eval-every", 8]
    code, said = command(*line, "-o", tmp_path / "a", "--steps", 8, "--bits", 8)
    assert code == 0, said
    card = json.loads((tmp_path / "a/card.json").read_text())
    model = load_learner(str(tiny_model)).model
    linears = [m.weight for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "proj_out"]
    n_linear, rest = sum(w.numel() for w in linears), model.num_parameters() - sum(w.numel() for w in linears)
    held = n_linear + 4 * sum(len(w) for w in linears) + 4 * rest + 4 * card["figures"]["trainable_parameters"]["value"]
    assert card["figures"]["compression_size"]["held_mib"] == pytest.approx(held / 2**20, abs=0.01)
    adapter = open_adapter(tmp_path / "a")
    assert (adapter.bits, adapter.held) == (8, "quantised")
    layers = [
        m for m in load_adapted(adapter, "quantised").model.modules() if isinstance(m, bitsandbytes.nn.Linear8bitLt)
    ]
    assert len(layers) == len(linears)
    reports = {}
    for name, source in (("adapter", "a"), ("dequantised", "d"), ("original", "o")):
        if name != "adapter":
            code, said = command("merge", tmp_path / "a", "-o", tmp_path / source, "--candidate", name)
            assert code == 0, said
        code, said = command("evaluate", tmp_path / source, "-d", clips, "-o", tmp_path / f"{source}.json")
        assert code == 0, said
        reports[name] = json.loads((tmp_path / f"{source}.json").read_text())["perplexity"]["value"]
        assert ("its linears in int8, all else in float32" in said) == (name == "adapter")
    assert reports["dequantised"] == pytest.approx(reports["adapter"], rel=2e-5)
    dequantised, original = (load_file(tmp_path / name / "model.safetensors") for name in ("d", "o"))
    for name in (f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "proj_out"):
        assert 1e-3 < (dequantised[name] - original[name]).norm() / original[name].norm() < 0.01, name
    code, said = command("merge", tmp_path / "a", "-o", tmp_path / "both")
    assert code == 0, said
    assert set(json.loads((tmp_path / "both/card.json").read_text())["candidates"]) == {"dequantised", "original"}


def test_adalora_and_a_ctc_model_train_on_8_bits(clips, command, tmp_path):
    from edgeqlora.demo import model_dir, speech_dir

    data = speech_dir() / "dev.jsonl"
    line = ["train", "-m", model_dir().parent / "model-wav2vec2", "--train", data, "--limit", 8, "--cache", "none"]
    code, said = command(
        *line, "-o", tmp_path / "a", "--steps", 20, "--batch-size", 2, "--bits", 8, "--ranks", "adalora:2"
    )
    assert code == 0, said
    code, said = command("merge", tmp_path / "a", "-o", tmp_path / "m", "--candidate", "dequantised")
    assert code == 0, said


def test_ranks_measure_the_error_of_the_8_bit_base(tiny_model, clips, command, tmp_path):
    errors = {}
    for bits in (4, 8):
        line = ["ranks", "-m", tiny_model, "--train", clips, "-o", tmp_path / f"{bits}.json", "--clips", 8]
        code, said = command(*line, "--mean-rank", 4, "--language", "en", "--bits", bits)
        assert code == 0, said
        assert f"{'int8' if bits == 8 else 'NF4'} error" in said
        assert f"--bits {bits} --ranks" in said
        content = json.loads((tmp_path / f"{bits}.json").read_text())
        assert content["calibration"]["bits"] == bits
        errors[bits] = [scores["nf4_error"] for scores in content["scores"].values()]
    assert all(0 < few < 0.2 * many for few, many in zip(errors[8], errors[4], strict=True))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"bits": 6},
            r"bits=6: allowed are 4 \(NF4\) and 8 \(int8\); for 16 or 32 bits leave it out, with method lora",
        ),
        ({"bits": 16}, r"bits=16: allowed are 4 \(NF4\) and 8 \(int8\)"),
        (
            {"bits": 8, "method": "lora"},
            "bits=8 with method='lora', whose base is in 16 or 32 bits: allowed with qlora",
        ),
        ({"bits": 4, "method": "full"}, "bits=4 with method='full', whose base is in 16 or 32 bits"),
    ],
)
def test_bits_that_a_method_does_not_have(given, text):
    with pytest.raises(UserError, match=text):
        make_settings({"base_model": "m", "train": "t", "output": "o", **given})


def test_a_start_at_the_error_of_nf4_is_not_for_8_bits(tiny_model, clips, command, tmp_path):
    line = ["ranks", "-m", tiny_model, "--train", clips, "-o", tmp_path / "r.json", "--clips", 8, "--mean-rank", 2]
    code, said = command(*line, "--init", "qera", "--bits", 8)
    assert (code, "init='qera' makes up for the error of NF4, and bits=8 has none" in said) == (
        2,
        True,
    )
    code, said = command(*line, "--init", "qera", "--language", "en")
    assert code == 0, said
    train = ["train", "-m", tiny_model, "--train", clips, "-o", tmp_path / "a", "--cache", "none", "--steps", 1]
    code, said = command(*train, "--ranks", tmp_path / "r.json", "--bits", 8)
    assert (code, "has no NF4: allowed is method='qlora' with 4 bits, or other ranks" in said) == (2, True), said
