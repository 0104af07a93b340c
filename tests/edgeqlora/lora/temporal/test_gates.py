"""Gates in time: 1 at the start, silent on padding, trained after the warm-up, kept by checkpoints, refused where broken."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeqlora.data.audio import load_audio
from edgeqlora.data.manifest import load_for
from edgeqlora.demo import model_dir
from edgeqlora.errors import UserError
from edgeqlora.lora.adapters import with_adapters
from edgeqlora.lora.loading import load_adapted, open_adapter
from edgeqlora.lora.temporal.gates import gates_of, remove_gates
from edgeqlora.models.family import load_learner
from edgeqlora.settings import make_settings
from edgeqlora.train import train
from edgeqlora.training.partial_run import partial_folder
from edgeqlora_export.gates import RECORD, WEIGHTS
from edgeqlora_jetson.files import sha256_file

MODELS = ["whisper", "wav2vec2"]


def settings_of(model, clips: Path, output: Path, **change):
    given = {
        "base_model": str(model),
        "train": str(clips),
        "dev": str(clips.with_name("dev.jsonl")),
        "output": str(output),
        "window_s": "1",
        "steps": 6,
        "batch_size": 4,
        "eval_every": 3,
        "cache": "none",
        "learning_rate": 2e-2,
        "temporal_gate": "layer",
        "ranks": "uniform:4",
    }
    return make_settings({**given, **change})


def batch_of(learner, clips: Path, window_s: float = 1.0):
    audios = [load_audio(row) for row in load_for("", str(clips), "")[:3]]
    processor = learner.processor
    features = np.stack([processor.features(audio, window_s) for audio in audios])
    return learner.inputs(features, [processor.n_valid_frames(audio.size, window_s) for audio in audios]), audios


def gated_learner(model: str, clips: Path, kind: str = "rank", b: float = 0.05, **change):
    """A learner with gates at their start, whose lora_B are random of deviation `b`."""
    learner = load_learner(str(model_dir(model)))
    settings = settings_of(model_dir(model), clips, Path("unused"), temporal_gate=kind, method="lora", **change)
    figures = with_adapters(settings, learner, 6)[1]
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in learner.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, b)
    return learner, figures


def logits_of(learner, inputs):
    with learner.window(inputs):
        return learner.model.get_base_model()(**inputs).logits


@pytest.mark.parametrize("model", MODELS)
def test_features_are_zero_on_padding_and_the_same_in_every_window(model, clips):
    learner = load_learner(str(model_dir(model)))
    _, features = learner.frame_parts()
    found = []
    for window_s in (1.0, 2.0):
        inputs, audios = batch_of(learner, clips, window_s)
        z = features(next(iter(inputs.values())))
        n_outputs = getattr(learner.processor, "n_outputs", lambda n_samples: n_samples // 320)
        assert z.shape == (3, n_outputs(round(16000 * window_s)), 4)
        for row, audio in zip(z, audios, strict=True):
            # The spectrum of a frame hears 12.5 ms on both sides: at most one position behind the clip.
            n_heard = int(audio.size / 16000 * 50) + 2
            assert row[:n_heard, 0].max() > 0.2
            assert torch.equal(row[n_heard:], torch.zeros_like(row[n_heard:]))
            assert row.abs().max() <= 4
        found.append(z)
    assert torch.allclose(found[0][:, :40], found[1][:, :40], atol=1e-6)


def test_a_beginning_sound_is_a_flux_and_another_sound_is_a_change(clips):
    _, features = load_learner(str(model_dir())).frame_parts()
    mel = torch.full((1, 80, 400), -1.0)
    mel[:, :20, 100:200] = 1.0  # low, from 1 s to 2 s
    mel[:, 60:, 200:300] = 1.0  # high, to 3 s
    energy, flux, contrast, change = features(mel)[0].T
    assert energy[[25, 75, 125, 175]].tolist() == pytest.approx([0, 0.25, 0.25, 0])
    assert flux.nonzero().flatten().tolist() == [50, 100]  # no flux where a sound ends
    assert change.argmax() in (99, 100)
    assert change[100] == pytest.approx(
        2 / 3, abs=0.01
    )  # the cosine of a quarter and another quarter of the bins: -1/3
    assert change[75] < 0.01
    assert contrast[50] > 0.1
    assert abs(contrast[75]) < 1e-6


@pytest.mark.parametrize("kind", ["layer", "rank"])
@pytest.mark.parametrize("model", MODELS)
def test_gates_are_exactly_one_at_the_start(model, kind, clips):
    learner, figures = gated_learner(model, clips, kind)
    inputs, _ = batch_of(learner, clips)
    gates = gates_of(learner.model)
    assert all(learner.hears_frames(name) for name in gates)
    per_gate = {"layer": 5, "rank": 20}[kind]
    assert sum(p.numel() for g in gates.values() for p in g.gate.parameters()) == per_gate * len(gates)
    assert figures["trainable_parameters"]["value"] == sum(
        p.numel() for p in learner.model.parameters() if p.requires_grad
    )
    learner.model.eval()
    with torch.no_grad():
        gated = logits_of(learner, inputs)
        remove_gates(learner.model)
        plain = logits_of(learner, inputs)
    assert torch.equal(gated, plain)
    assert not gates_of(learner.model)


def test_gates_get_no_gradient_before_the_adapter_has_one_and_the_same_with_checkpointing(clips):
    def gradients(b, **change):
        learner, _ = gated_learner("whisper", clips, b=b, **change)
        inputs, _ = batch_of(learner, clips)
        learner.model.train()
        logits_of(learner, inputs).log_softmax(-1)[..., 5].sum().backward()
        return torch.cat([p.grad.flatten() for g in gates_of(learner.model).values() for p in g.gate.parameters()])

    assert not gradients(0.0).any()
    plain, recomputed = gradients(0.05), gradients(0.05, gradient_checkpointing=True)
    assert (plain != 0).float().mean() > 0.9
    assert torch.allclose(plain, recomputed, atol=1e-5)


def test_a_gate_weighs_what_the_adapter_adds_at_its_frame(clips):
    """One gate by hand: 2 sigmoid(w z + b) times the ungated addition, frame by frame."""
    learner, _ = gated_learner("whisper", clips, "layer")
    inputs, _ = batch_of(learner, clips)
    name = "model.encoder.layers.0.fc1"
    adapter, gate = gates_of(learner.model)[name]
    with torch.no_grad():
        gate.weight.copy_(torch.tensor([[3.0, -1.0, 2.0, 0.5]]))
        gate.bias.fill_(-0.5)
    heard = {}
    handle = adapter.register_forward_hook(lambda module, args, output: heard.update(x=args[0], y=output))
    learner.model.eval()
    with torch.no_grad():
        logits_of(learner, inputs)
        handle.remove()
        z = learner.frame_parts()[1](inputs["input_features"])
        g = 2 / (1 + torch.exp(-(z @ gate.weight[0] - 0.5).clamp(-4, 4)))
        added = adapter.lora_B["default"](heard["x"] @ adapter.lora_A["default"].weight.T) * adapter.scaling["default"]
        expected = adapter.base_layer(heard["x"]) + g[..., None] * added
    assert g.std() > 0.1
    assert torch.allclose(heard["y"], expected, atol=1e-5)


@pytest.fixture(scope="module")
def adapter(tiny_model, clips, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("gates") / "adapter"
    train(settings_of(tiny_model, clips, output, temporal_gate="rank", steps=4))
    return output


def test_gates_wait_for_the_end_of_the_warm_up(tiny_model, clips, tmp_path, monkeypatch):
    from edgeqlora.training.run_log import RunLog

    sizes, rates, end = [], [], RunLog.on_step_end

    def spy(self, args, state, control, model=None, optimizer=None, **kwargs):
        sizes.append(sum(float(p.detach().abs().sum()) for g in gates_of(model).values() for p in g.gate.parameters()))
        rates.append([group["lr"] for group in optimizer.param_groups])
        end(self, args, state, control, **kwargs)

    monkeypatch.setattr(RunLog, "on_step_end", spy)
    train(settings_of(tiny_model, clips, tmp_path / "a", warmup_ratio=0.5))
    # Steps 1 to 3 rise to the full rate; the rate of a step is set at the end of the one before.
    assert sizes[:3] == [0, 0, 0]
    assert all(size > 0 for size in sizes[3:])
    assert rates[0][-2:] == [0, 0]
    assert rates[3][-1] == pytest.approx(10 * rates[3][0])


def test_a_run_that_stopped_goes_on_with_its_gates(tiny_model, clips, tmp_path):
    class Stop(Exception):
        pass

    def watch(step, figures):
        if step == 6:
            raise Stop

    settings = settings_of(tiny_model, clips, tmp_path / "a", temporal_gate="rank", eval_every=2)
    train(dataclasses.replace(settings, output=str(tmp_path / "straight")))
    with pytest.raises(Stop):
        train(settings, watch=watch)
    checkpoint = partial_folder(tmp_path / "a") / "checkpoint-4"
    complete = json.loads((checkpoint / "complete.json").read_text())
    assert {WEIGHTS, RECORD} <= set(complete["sha256"])
    train(settings, resume=True)
    for name in (WEIGHTS, "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert any(value.any() for value in load_file(tmp_path / "a" / WEIGHTS).values())


def test_the_adapter_stays_plain_and_loading_gives_the_gates_back(adapter, clips):
    assert not [name for name in load_file(adapter / "adapter_model.safetensors") if "gate" in name]
    card = json.loads((adapter / "card.json").read_text())
    assert card["temporal_gate"]["kind"] == "rank"
    saved = load_file(adapter / WEIGHTS)
    assert card["temporal_gate"]["parameters"] == sum(value.numel() for value in saved.values())
    assert any(value.any() for value in saved.values())
    learner = load_adapted(open_adapter(adapter), "dequantised")
    for name, gated in gates_of(learner.model).items():
        assert torch.equal(gated.gate.weight, saved[f"{name}.weight"])
    inputs, _ = batch_of(learner, clips)
    with torch.no_grad():
        gated = logits_of(learner, inputs)
        remove_gates(learner.model)
        assert not torch.allclose(gated, logits_of(learner, inputs), atol=1e-4)


@pytest.mark.parametrize("has_card", [True, False])
@pytest.mark.parametrize("what", ["changed", "without weights", "without record", "without both", "of another", "NaN"])
def test_gates_that_are_damaged_missing_or_anothers_are_refused(adapter, tiny_model, tmp_path, what, has_card):
    folder = tmp_path / "a"
    shutil.copytree(adapter, folder)
    if not has_card:
        (folder / "card.json").unlink()
    base = str(tiny_model)
    if what == "changed":
        content = bytearray((folder / WEIGHTS).read_bytes())
        content[-1] ^= 1
        (folder / WEIGHTS).write_bytes(content)
    elif what == "of another":
        adapter_file = folder / "adapter_model.safetensors"
        save_file({name: value + 1 for name, value in load_file(adapter_file).items()}, adapter_file)
    elif what == "NaN":
        save_file({name: value + torch.nan for name, value in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    for name in {"without weights": [WEIGHTS], "without record": [RECORD], "without both": [WEIGHTS, RECORD]}.get(
        what, []
    ):
        (folder / name).unlink()
    if what == "without both" and not has_card:
        assert not open_adapter(folder, base).has_gates  # nothing says that there were any
        return
    with pytest.raises(UserError, match=r"temporal_gate|adapter_model"):
        open_adapter(folder, base, "qlora")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda record, gates: record.update(schema="x"), "expected schema 'edgeqlora.lora.temporal_gate/1' with kind"),
        (
            lambda record, gates: record.update(linears=[]),
            "lacks gates, or holds NaN or infinity: copy the whole folder",
        ),
        (
            lambda record, gates: gates.update({k: v[:, :3] for k, v in gates.items() if v.ndim == 2}),
            "has no weight of 4 f",
        ),
        (None, "has temporal_gate.json and not temporal_gate.safetensors: copy the whole folder again"),
    ],
)
def test_a_record_that_says_something_else_is_refused(adapter, tiny_model, command, clips, tmp_path, change, text):
    folder = tmp_path / "a"
    shutil.copytree(adapter, folder)
    (folder / "card.json").unlink()  # it has the hash of the gates that were there
    if change is None:
        (folder / WEIGHTS).unlink()
    else:
        record, gates = json.loads((folder / RECORD).read_text()), load_file(folder / WEIGHTS)
        change(record, gates)
        save_file({name: value.contiguous() for name, value in gates.items()}, folder / WEIGHTS)
        record["sha256"][WEIGHTS] = sha256_file(folder / WEIGHTS)
        (folder / RECORD).write_text(json.dumps(record))
    code, said = command("evaluate", folder, "-d", clips, "--base-model", tiny_model)
    assert (code, text in said) == (2, True), said


def test_a_run_without_gates_does_not_take_gates_for_its_own(adapter, tiny_model, clips, tmp_path):
    from edgeqlora.lora.loading import resume_weights

    learner = load_adapted(open_adapter(adapter), "dequantised")
    remove_gates(learner.model)
    with pytest.raises(UserError, match=r"its gates in time \(\d+\) do not fit the adapters \(0 with gates\)"):
        resume_weights(learner.model, adapter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "full"}, "temporal_gate='layer' is of LoRA adapters"),
        ({"ranks": "adalora:4"}, "temporal_gate='layer' is of LoRA adapters"),
        ({"temporal_gate": "frame"}, "temporal_gate='frame': allowed are off, layer, rank"),
    ],
)
def test_settings_that_cannot_have_gates(change, message, clips, tmp_path):
    with pytest.raises(UserError, match=message):
        settings_of(model_dir(), clips, tmp_path, **change)


def test_ranks_that_leave_the_encoder_out_have_no_gates(tiny_model, clips, tmp_path):
    ranks = {"schema": "edgeqlora.lora.ranks/1", "rank_pattern": {"model.decoder.layers.0.fc1": 4}}
    (tmp_path / "ranks.json").write_text(json.dumps(ranks))
    with pytest.raises(UserError, match="no adapter hears frames"):
        train(settings_of(tiny_model, clips, tmp_path / "a", ranks=str(tmp_path / "ranks.json")))
    assert not (tmp_path / "a").exists()
