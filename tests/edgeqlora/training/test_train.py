"""Training for real on a tiny model: output, dry run, resuming, several processes, and every refusal."""

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from training_runs import other_manifest, settings_of
from typer.testing import CliRunner

from edgeqlora.cli.main import app
from edgeqlora.errors import UserError
from edgeqlora.train import train
from edgeqlora.training.partial_run import partial_folder

train_module = importlib.import_module("edgeqlora.train")


def test_output_is_a_plain_peft_adapter_with_a_card(straight, tiny_model):
    from peft import PeftModel
    from transformers import WhisperForConditionalGeneration

    base = WhisperForConditionalGeneration.from_pretrained(tiny_model)
    model = PeftModel.from_pretrained(base, str(straight))
    assert (
        sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
        == json.loads((straight / "card.json").read_text())["figures"]["trainable_parameters"]["value"]
    )
    card = json.loads((straight / "card.json").read_text())
    assert card["method"] == "qlora"
    assert card["steps"] == 6
    if card["computed_with"]["device"] == "cpu":
        assert card["computed_with"] == {"device": "cpu", "precision": "fp32", "optimizer": "adamw_torch"}
        assert card["base_dtype"] == "float32"
    assert card["parents"]["base_model"]["model.safetensors"]
    for name in ("samples_per_s", "peak_rss", "wall_time", "compression_trainable", "compression_size", "final_loss"):
        assert card["figures"][name]["value"] > 0, name
    energy = card["figures"]["energy"]
    assert energy["how"] == "the whole run with its evaluations"
    assert energy["value"] > 0 if "reason" not in energy else energy["value"] is None
    vram = card["figures"]["peak_vram"]
    if torch.cuda.is_available():
        assert vram["value"] > 0
    else:
        assert (vram["value"], vram["reason"]) == (None, "no CUDA GPU in this run")
    assert json.loads((straight / "ranks.json").read_text())["rank_pattern"]


def test_every_linear_of_encoder_cross_and_decoder_has_an_adapter(straight):
    pattern = json.loads((straight / "ranks.json").read_text())["rank_pattern"]
    # Per layer: encoder 4 + 2; decoder 4 + 2 and 4 of cross-attention; two layers each.
    assert len(pattern) == 2 * 6 + 2 * 10
    assert not any("proj_out" in name for name in pattern)


def test_log_has_loss_wer_and_memory(straight):
    rows = [json.loads(line) for line in (straight / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert all(row["rss_mib"] > 0 for row in rows if "loss" in row)
    assert [row["step"] for row in rows if "eval_wer" in row] == [2, 4, 6]


def test_nothing_is_pickled_and_nothing_is_left_over(straight, tiny_model, clips, tmp_path):
    assert not partial_folder(straight).exists()
    seen: set[str] = set()

    from edgeqlora.training.trainer import SpeechTrainer

    original = SpeechTrainer._save_checkpoint

    def spy(self, *args):
        original(self, *args)
        seen.update(p.suffix for p in Path(self.args.output_dir).rglob("*") if p.is_file())

    SpeechTrainer._save_checkpoint = spy
    try:
        train(settings_of(tiny_model, clips, tmp_path / "a", steps=2))
    finally:
        SpeechTrainer._save_checkpoint = original
    assert {".json", ".safetensors"} <= seen
    assert not seen & {".pt", ".pth", ".bin", ".pkl"}


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_and_the_gates_of_one(tiny_model, clips, tmp_path):
    from edgeqlora.settings import write_settings
    from edgeqlora_export.gates import WEIGHTS

    flags = {"spec_augment": True, "temporal_gate": "rank", "learning_rate": 5e-3}
    train(settings_of(tiny_model, clips, tmp_path / "one", **flags))
    write_settings(settings_of(tiny_model, clips, tmp_path / "two", **flags), tmp_path / "two.toml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "edgeqlora", "train", "--config", str(tmp_path / "two.toml")]
    done = subprocess.run(command, capture_output=True, timeout=400, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    curves, gates = [], []
    for name in ("one", "two"):
        rows = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        curves.append([row[key] for key in ("loss", "eval_wer") for row in rows if key in row])
        saved = load_file(tmp_path / name / WEIGHTS)
        gates.append(torch.cat([saved[key].flatten() for key in sorted(saved)]))
    assert len(curves[0]) == 6 + 3
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    assert gates[0].abs().max() > 0.01
    assert torch.allclose(*gates, atol=1e-3)


def test_dry_run_says_what_it_would_cost_and_writes_nothing(tiny_model, clips, tmp_path, capfd):
    report = train(settings_of(tiny_model, clips, tmp_path / "adapter", steps=50), dry_run=True)["figures"]
    assert list(tmp_path.iterdir()) == []
    assert report["estimated_total"]["steps"] == 50
    assert report["step"]["value"] > 0
    assert "50 steps and 25 evaluations would take about" in capfd.readouterr().err


def test_dry_run_says_how_much_gpu_memory_training_and_evaluation_need(tiny_model, clips, tmp_path, monkeypatch, capfd):
    """With peaks as a GPU would give them: one after the two steps, one after the evaluation."""
    from edgeqlora.card import measured
    from edgeqlora.training import run as module

    peaks = iter([measured(1234.0, "MiB"), measured(567.0, "MiB")])
    monkeypatch.setattr(module, "peak_vram", lambda: next(peaks))
    figures = train(settings_of(tiny_model, clips, tmp_path / "adapter"), dry_run=True)["figures"]
    assert (figures["peak_vram"]["value"], figures["peak_vram_evaluation"]["value"]) == (1234.0, 567.0)
    assert "of the GPU's memory: 1,234 MiB for training, 567 MiB for evaluation" in capfd.readouterr().err
    monkeypatch.setattr(module, "peak_vram", lambda: measured(1234.0, "MiB"))
    figures = train(settings_of(tiny_model, clips, tmp_path / "adapter", dev=""), dry_run=True)["figures"]
    assert figures["peak_vram_evaluation"]["reason"] == "no dev data was given"
    assert "1,234 MiB for training, no evaluation without dev data" in capfd.readouterr().err


@pytest.mark.parametrize("method", ["lora", "full"])
def test_other_methods(method, tiny_model, clips, tmp_path):
    card = train(settings_of(tiny_model, clips, tmp_path / "out", method=method, steps=2))
    share = card["figures"]["trainable_parameters"]["share"]
    assert (share < 0.5) if method == "lora" else (share > 0.5)
    # Nothing is quantised: the model is held in the 4 bytes a weight of fp32.
    size = card["figures"]["compression_size"]
    assert size["held_mib"] >= 0.99 * size["fp32_mib"]
    if method == "full":
        from transformers import WhisperForConditionalGeneration

        model = WhisperForConditionalGeneration.from_pretrained(tmp_path / "out")
        assert model.config.max_source_positions == 1500  # the window is a matter of training, not of the model


def test_loss_falls(tiny_model, clips, tmp_path):
    card = train(
        settings_of(
            tiny_model, clips, tmp_path / "out", steps=30, dev="", eval_every=30, method="full", learning_rate=3e-3
        )
    )
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.6 * losses[0]
    assert card["dev_wer"]["reason"] == "no dev data was given"


def test_checkpointing_accumulation_and_augmentation_reach_every_adapter(tiny_model, clips, tmp_path):
    # EveryAdapterLearns raises if some adapter gets no gradient in the first step.
    train(
        settings_of(
            tiny_model,
            clips,
            tmp_path / "out",
            steps=2,
            gradient_checkpointing=True,
            gradient_accumulation=2,
            speed_perturb=[0.9, 1.1],
            spec_augment=True,
            optimizer="paged-adamw-8bit",
        )
    )
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    moved = {name: bool(weight.any()) for name, weight in weights.items() if "lora_B" in name}  # B starts at zero
    assert len(moved) == 2 * 6 + 2 * 10
    assert all(moved.values()), [name for name, is_moved in moved.items() if not is_moved]


def test_ranks_file_gives_each_layer_its_rank(tiny_model, clips, straight, tmp_path):
    names = list(json.loads((straight / "ranks.json").read_text())["rank_pattern"])
    pattern = {name: 1 + i % 4 for i, name in enumerate(names)}
    (tmp_path / "ranks.json").write_text(json.dumps({"schema": "edgeqlora.lora.ranks/1", "rank_pattern": pattern}))
    train(settings_of(tiny_model, clips, tmp_path / "out", steps=1, ranks=str(tmp_path / "ranks.json")))
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    got = {
        k.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): v.shape[0]
        for k, v in weights.items()
        if "lora_A" in k
    }
    assert got == pattern


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"window_s": "0.5"}, r"clips are longer than the window of 0.5 s: .*\.wav"),
        ({"window_s": "0.5", "long_clips": "skip", "limit": 1, "gradient_accumulation": 3}, "cannot be divided"),
        ({"train": "/nothing/here.jsonl"}, "here.jsonl"),
        ({"base_model": "/nothing/here"}, "no model at"),
        ({"ranks": "uniform:500"}, "out of range"),
        ({"precision": "fp16"}, "needs a CUDA GPU"),
        ({"max_label_tokens": 1}, "max_label_tokens=1 leaves no room for text and its end: give 2 or more"),
        ({"language": "de"}, "cannot be asked of an English-only model"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(tiny_model, clips, tmp_path, change, text):
    with pytest.raises(UserError, match=text):
        train(settings_of(tiny_model, clips, tmp_path / "out", **change))
    assert list(tmp_path.iterdir()) == []


def test_durations_come_from_the_files_not_from_the_manifest(tiny_model, clips, tmp_path):
    soundfile.write(tmp_path / "long.wav", np.zeros(32000, np.float32), 16000)
    liar = other_manifest(clips, tmp_path / "m.jsonl", audio=str(tmp_path / "long.wav"), duration=None)
    with pytest.raises(UserError, match=r"longer than the window of 1 s: .*long\.wav \(2\.0 s\)"):
        train(settings_of(tiny_model, clips, tmp_path / "out", train=str(liar)))


def test_missing_dev_audio_is_found_before_training(tiny_model, clips, tmp_path):
    dev = other_manifest(clips, tmp_path / "dev.jsonl", audio=str(tmp_path / "gone.wav"))
    with pytest.raises(UserError, match=r"gone\.wav"):
        train(settings_of(tiny_model, clips, tmp_path / "out", dev=str(dev)))
    assert not partial_folder(tmp_path / "out").exists()


def test_a_diverged_run_keeps_its_best_checkpoint(tiny_model, clips, tmp_path, monkeypatch):
    from edgeqlora.training.trainer import SpeechTrainer

    def diverge(self, outputs, labels, num_items_in_batch=None):
        calls.append(1)
        return original(self, outputs, labels, num_items_in_batch) * (float("nan") if len(calls) > 3 else 1)

    calls: list[int] = []
    original = SpeechTrainer._token_mean_loss
    monkeypatch.setattr(SpeechTrainer, "_token_mean_loss", diverge)
    card = train(settings_of(tiny_model, clips, tmp_path / "out"))
    assert card["best_step"] == 2
    assert all(weight.isfinite().all() for weight in load_file(tmp_path / "out" / "adapter_model.safetensors").values())
    assert card["figures"]["final_loss"]["value"] is None
    assert "diverged" in card["figures"]["final_loss"]["reason"]
    for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # NaN is not JSON


def test_equal_wers_are_decided_by_loss(tiny_model, clips, tmp_path, monkeypatch):
    from edgeqlora.evaluation.recognise import Recognition

    losses = iter([0.5, 0.1, 0.3])
    monkeypatch.setattr(Recognition, "loss", property(lambda self: (next(losses) * 10, 10)))
    card = train(settings_of(tiny_model, clips, tmp_path / "out", learning_rate=1e-6))  # WER stays what it is
    assert card["best_step"] == 4
    assert card["dev_wer"]["value"] > 0
    assert (card["choose_by"], card["dev_loss"]["value"]) == ("wer", 0.1)


@pytest.mark.parametrize(("asked", "best_step"), [("wer", 2), ("cer", 4), ("loss", 6)])
def test_the_best_checkpoint_is_chosen_by_what_is_asked_for(tiny_model, clips, tmp_path, monkeypatch, asked, best_step):
    import edgeqlora.training.dev_score as module
    from edgeqlora.evaluation.recognise import Recognition

    figures = iter([(10.0, 90.0, 0.9), (50.0, 5.0, 0.8), (20.0, 20.0, 0.1)])

    def measured_now(pairs, no_words):
        wer, cer, _ = now[-1]
        return {"wer": {"value": wer}, "cer": {"value": cer}}

    now: list = []
    monkeypatch.setattr(Recognition, "loss", property(lambda self: (now.append(next(figures)) or now[-1][2], 1)))
    monkeypatch.setattr(module, "error_figures", measured_now)
    card = train(settings_of(tiny_model, clips, tmp_path / "out", choose_by=asked))
    assert (card["best_step"], card["choose_by"]) == (best_step, asked)
    assert [card[f"dev_{name}"]["value"] for name in ("wer", "cer", "loss")] == list(now[best_step // 2 - 1])


def test_energy_is_that_of_the_whole_run_with_its_evaluations(tiny_model, clips, tmp_path, monkeypatch):
    """A made-up powercap tree whose counter of 100 J takes 1 J every 5 ms: it starts again from 0 all the time."""
    import threading

    from edgeqlora.training.machine import resources
    from edgeqlora_jetson.power import Scope
    from edgeqlora_jetson.power.rapl import RaplSource

    zone = tmp_path / "root/sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("energy_uj", "0"), ("max_energy_range_uj", "100000000")):
        (zone / name).write_text(text)
    spent_j, ended = [0], threading.Event()

    def spend() -> None:
        while not ended.wait(0.005):
            (zone / "new").write_text(str((spent_j[0] + 1) % 100 * 1_000_000))
            (zone / "new").rename(zone / "energy_uj")
            spent_j[0] += 1

    def open_source(*args, **kwargs):
        source = RaplSource(0.02, str(tmp_path / "root"))
        thread.start()
        return source, Scope("cpu_package", source.rails), []

    def read(meter):
        at_read_j.append(spent_j[0])
        return real_read(meter)

    thread, at_read_j, real_read = threading.Thread(target=spend), [], resources.EnergyMeter.read
    monkeypatch.setattr(resources, "open_power_source", open_source)
    monkeypatch.setattr(resources.EnergyMeter, "read", read)
    score, in_evaluation_j = train_module.DevScore.__call__, []
    monkeypatch.setattr(train_module.DevScore, "__call__", slowed(score, lambda: in_evaluation_j.append(spent_j[0])))
    try:
        figure = train(settings_of(tiny_model, clips, tmp_path / "out", steps=2))["figures"]["energy"]
    finally:
        ended.set()
        thread.join()
    assert in_evaluation_j[1] - in_evaluation_j[0] > 100  # more than once around where no step was taken
    assert figure["value"] == pytest.approx(at_read_j[0], abs=20)
    assert figure["coverage"] > 0.9


def slowed(evaluate, look):
    def evaluate_slowly(self):
        look()
        time.sleep(1.5)
        look()
        return evaluate(self)

    return evaluate_slowly


def test_overwrite_replaces_what_we_wrote_and_nothing_else(tiny_model, clips, tmp_path, monkeypatch):
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="this program did not write it"):
        train(settings_of(tiny_model, clips, output), overwrite=True)
    (output / "card.json").write_text('{"schema": "edgeqlora.card/1"}')
    monkeypatch.chdir(output)
    with pytest.raises(UserError, match="it is or holds the current folder"):
        train(settings_of(tiny_model, clips, Path(".")), overwrite=True)
    monkeypatch.chdir(tmp_path)
    data = other_manifest(clips, output / "m.jsonl")
    with pytest.raises(UserError, match=r"it is or holds what this command reads, .*m\.jsonl"):
        train(settings_of(tiny_model, clips, output, train=str(data)), overwrite=True)
    (output / "clip.wav").write_bytes((clips.parent / "0.wav").read_bytes())
    outside = other_manifest(clips, tmp_path / "m.jsonl", audio=str(output / "clip.wav"))
    with pytest.raises(UserError, match="it is or holds what this command reads"):
        train(settings_of(tiny_model, clips, output, train=str(outside)), overwrite=True)
    partial_folder(output).mkdir()
    (partial_folder(output) / "notes.txt").write_text("mine")
    data.unlink()
    with pytest.raises(UserError, match="where checkpoints go, holds something else"):
        train(settings_of(tiny_model, clips, output, steps=1), overwrite=True)
    assert (output / "thesis.txt").read_text() == "precious"
    (partial_folder(output) / "notes.txt").unlink()
    train(settings_of(tiny_model, clips, output, steps=1), overwrite=True)
    assert not (output / "thesis.txt").exists()


def test_a_dry_run_of_another_process_has_nothing_to_print(tiny_model, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module.Run, "estimate", lambda self: {"figures": {}})
    monkeypatch.setenv("RANK", "1")
    line = ["train", "-m", str(tiny_model), "--train", str(clips), "-o", str(tmp_path / "out"), "--dry-run"]
    done = CliRunner().invoke(app, [*line, "--cache", "none"])
    assert (done.exit_code, done.output) == (0, "")


def test_a_log_is_cut_whole_or_not_at_all(tmp_path, monkeypatch):
    from edgeqlora.training.run_log import truncate_log

    log = tmp_path / "log.jsonl"
    text = '{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st'
    log.write_text(text)

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", stop)
        with pytest.raises(KeyboardInterrupt):
            truncate_log(log, 2)
    assert log.read_text() == text
    truncate_log(log, 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'


def in_cyrillic(clips: Path, path: Path, n: int) -> str:
    """The manifest of clips with n of its 8 texts in another script."""
    rows = [json.loads(line) for line in clips.read_text().splitlines()]
    for i, row in enumerate(rows):
        row["audio"] = str(clips.parent / row["audio"])
        row["text"] = "\u0432\u044b\u043a\u043b\u044e\u0447\u0438" if i < n else row["text"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("n", "asked", "n_train"),
    [
        (1, "auto", 8),
        (4, "auto", 8),
        (5, "auto", None),
        (1, "error", None),
        (8, "keep", 8),
        (5, "skip", 3),
        (8, "skip", None),
    ],
)
def test_texts_in_another_script(tiny_model, clips, tmp_path, capsys, n, asked, n_train):
    from rich.console import Console

    from edgeqlora.models.family import load_processor
    from edgeqlora.training.training_data import prepare

    data = in_cyrillic(clips, tmp_path / "m.jsonl", n)
    settings = settings_of(tiny_model, clips, tmp_path / "out", train=data, other_script=asked)
    told = rf"{n} of 8 texts are in another script than the model writes: \S*0\.wav has CYRILLIC"
    if n_train is None:
        with pytest.raises(UserError, match=told):
            train(settings)
        return
    prepared = prepare(settings, load_processor(str(tiny_model)), Console(stderr=True, soft_wrap=True))
    assert (len(prepared.rows), prepared.n_other_script) == (n_train, n)
    said = capsys.readouterr().err
    assert len(re.findall(told, said)) == 1
    assert said.count(" has CYRILLIC") == min(n, 2)


def test_existing_output_is_not_touched(tiny_model, clips, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="choose another folder, or pass --overwrite"):
        train(settings_of(tiny_model, clips, tmp_path / "out"))
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"
