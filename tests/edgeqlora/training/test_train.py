"""Training for real on a tiny model: output, dry run, resuming, several processes, and every refusal."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from test_resources import write_package

from edgeqlora.errors import UserError
from edgeqlora.settings import make_settings
from edgeqlora.train import train
from edgeqlora.training.partial_run import partial_folder
from edgeqlora.training.resources import EnergyMeter

RUN = {"window_s": "1", "steps": 6, "batch_size": 4, "eval_every": 2, "cache": "none", "learning_rate": 5e-3, "seed": 1}
RANDOM = {
    "window_s": "0.8,1.2",
    "batch_size": 2,
    "lora_dropout": 0.1,
    "spec_augment": True,
    "noise_probability": 0.7,
    "workers": 2,
    "eval_every": 3,
}
"""All that draws random numbers, in the trainer's process and in those of its data loader."""


def settings_of(tiny_model: Path, clips: Path, output: Path, **change):
    given = {
        "base_model": str(tiny_model),
        "train": str(clips),
        "dev": str(clips.with_name("dev.jsonl")),
        "output": str(output),
        **RUN,
    }
    return make_settings({**given, **change})


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """Folder with one recording of noise."""
    folder = tmp_path_factory.mktemp("noise")
    soundfile.write(folder / "a.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 16000)
    return folder


@pytest.fixture(scope="module")
def straight(tiny_model, clips, tmp_path_factory) -> Path:
    """Adapter of an uninterrupted run, on a machine whose one counter of energy rises by 1 J from look to look."""
    output = tmp_path_factory.mktemp("straight") / "adapter"
    root = tmp_path_factory.mktemp("root")

    class Rising(EnergyMeter):
        def __init__(self) -> None:
            self.n_polls = 0
            write_package(root, 0, 0)
            super().__init__(str(root))

        def poll(self) -> None:
            self.n_polls += 1
            write_package(root, 0, 1_000_000 * self.n_polls)
            super().poll()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeqlora.train.EnergyMeter", Rising)
        train(settings_of(tiny_model, clips, output))
    return output


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


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
    assert card["parents"]["base_model"]["model.safetensors"]
    for name in ("samples_per_s", "peak_rss", "wall_time", "compression_trainable", "compression_size", "final_loss"):
        assert card["figures"][name]["value"] > 0, name
    # From the look before the first step to the one behind the sixth and last.
    energy = card["figures"]["energy"]
    assert (energy["value"], energy["unit"], energy["how"]) == (7.0, "J", "the whole run with its evaluations")
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


KILLED = """
import os, signal, sys
from edgeqlora.quiet import hush; hush
from edgeqlora.training import run_log as progress
from edgeqlora.settings import make_settings, read_settings
from edgeqlora.train import train
step_end = progress.RunLog.on_step_end
def kill(self, args, state, control, **kwargs):
    step_end(self, args, state, control, **kwargs)
    if state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
progress.RunLog.on_step_end = kill
train(make_settings(read_settings(sys.argv[1])))
"""


def test_killed_and_resumed_run_ends_with_the_same_adapter(tiny_model, clips, noise, tmp_path):
    from edgeqlora.settings import write_settings

    settings = settings_of(tiny_model, clips, tmp_path / "adapter", noise=str(noise), **RANDOM)
    train(dataclasses.replace(settings, output=str(tmp_path / "straight")))
    write_settings(settings, tmp_path / "c.toml")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "c.toml")], capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert not (tmp_path / "adapter").exists()
    with pytest.raises(UserError, match="pass --resume to go on"):
        train(settings)
    with pytest.raises(UserError, match=r"--resume with batch_size=4, but the unfinished run has 2"):
        train(dataclasses.replace(settings, batch_size=4), resume=True)
    # A checkpoint that was cut off while it was written is passed over.
    cut_off = partial_folder(tmp_path / "adapter") / "checkpoint-4"
    cut_off.mkdir()
    (cut_off / "adapter_model.safetensors").write_bytes(b"half")
    card = train(settings, resume=True)
    assert card["figures"]["wall_time"]["resumed"] is True
    assert adapter_bytes(tmp_path / "adapter") == adapter_bytes(tmp_path / "straight")
    steps = [
        json.loads(x)["step"] for x in (tmp_path / "adapter" / "log.jsonl").read_text().splitlines() if '"loss"' in x
    ]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one(tiny_model, clips, tmp_path):
    from edgeqlora.settings import write_settings

    curves = {}
    for name, processes in (("one", 1), ("two", 2)):
        settings = settings_of(tiny_model, clips, tmp_path / name, spec_augment=True)
        write_settings(settings, tmp_path / f"{name}.toml")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += ["-m", "edgeqlora", "train", "--config", str(tmp_path / f"{name}.toml")]
        done = subprocess.run(command, capture_output=True, timeout=400, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        rows = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        curves[name] = [row["loss"] for row in rows if "loss" in row] + [
            row["eval_wer"] for row in rows if "eval_wer" in row
        ]
    assert len(curves["one"]) == 6 + 3
    assert curves["two"] == pytest.approx(curves["one"], abs=1e-4)


def test_dry_run_says_what_it_would_cost_and_writes_nothing(tiny_model, clips, tmp_path, capfd):
    report = train(settings_of(tiny_model, clips, tmp_path / "adapter", steps=50), dry_run=True)["figures"]
    assert list(tmp_path.iterdir()) == []
    assert report["estimated_total"]["steps"] == 50
    assert report["step"]["value"] > 0
    assert "50 steps and 25 evaluations would take about" in capfd.readouterr().err


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


def other_manifest(clips: Path, path: Path, **change_of_first) -> Path:
    rows = [json.loads(line) for line in clips.read_text().splitlines()]
    for row in rows:
        row["audio"] = str(clips.parent / row["audio"])
    rows[0].update(change_of_first)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


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


def with_rank(wer: float, figures: dict) -> dict:
    return {"eval_rank": wer, "eval_wer": wer, **figures}


def test_equal_wers_are_decided_by_loss(tiny_model, clips, tmp_path, monkeypatch):
    from edgeqlora.evaluation.recognise import Recogniser

    losses = iter([0.5, 0.1, 0.3])
    monkeypatch.setattr(Recogniser, "cross_entropy", lambda self, rows: (next(losses) * 10, 10))
    card = train(settings_of(tiny_model, clips, tmp_path / "out", learning_rate=1e-6))  # WER stays what it is
    assert card["best_step"] == 4
    assert card["dev_wer"]["value"] > 0


def test_resume_after_early_stop_ends_with_the_same_adapter(tiny_model, clips, tmp_path, monkeypatch):
    """Killed when it had stopped early at step 6, before its output was written: that is what the copy is."""
    from edgeqlora import train as module

    wers = iter([10.0, 90.0, 95.0, 1.0, 1.0, 1.0])
    figures = {"eval_cer": 0.0, "eval_loss": 0.0, "eval_clips": 1, "eval_incomplete": 0, "eval_seconds": 0.0}
    monkeypatch.setattr(module, "_evaluator", lambda *args: lambda: with_rank(next(wers), figures))
    settings = settings_of(tiny_model, clips, tmp_path / "straight", steps=12, patience=2, lora_dropout=0.1)
    write_output = module._write_output

    def copy_and_write(settings, output, *args):
        if output.name == "straight":
            shutil.copytree(partial_folder(output), partial_folder(tmp_path / "resumed"))
        return write_output(settings, output, *args)

    monkeypatch.setattr(module, "_write_output", copy_and_write)
    cards = [train(settings), train(dataclasses.replace(settings, output=str(tmp_path / "resumed")), resume=True)]
    assert adapter_bytes(tmp_path / "resumed") == adapter_bytes(tmp_path / "straight")
    assert [(card["best_step"], card["dev_wer"]["value"], card["steps"]) for card in cards] == [(2, 10.0, 6)] * 2


def test_resume_with_other_data_is_refused(tiny_model, clips, tmp_path, monkeypatch):
    from edgeqlora import train as module

    data = other_manifest(clips, tmp_path / "m.jsonl")
    settings = settings_of(tiny_model, clips, tmp_path / "out", train=str(data))
    real_write = module._write_output
    monkeypatch.setattr(module, "_write_output", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(settings)
    monkeypatch.setattr(module, "_write_output", real_write)
    other_manifest(clips, data, text="another text")
    with pytest.raises(UserError, match="train changed since the unfinished run"):
        train(settings, resume=True)


def test_text_in_the_wrong_script_names_the_file(tiny_model, clips, tmp_path):
    rows = [json.loads(line) for line in clips.read_text().splitlines()]
    rows[2]["text"] = "выключи свет"
    for row in rows:
        row["audio"] = str(clips.parent / row["audio"])
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"another script.*2\.wav has CYRILLIC"):
        train(settings_of(tiny_model, clips, tmp_path / "out", train=str(tmp_path / "m.jsonl")))


def test_existing_output_is_not_touched(tiny_model, clips, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="choose another folder, or pass --overwrite"):
        train(settings_of(tiny_model, clips, tmp_path / "out"))
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"
