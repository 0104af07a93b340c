"""Runs that were killed, stopped early or cut off, and what a resume refuses."""

import dataclasses
import importlib
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
from safetensors.torch import load_file
from training_runs import other_manifest, settings_of

from edgeqlora.errors import UserError
from edgeqlora.train import train
from edgeqlora.training.partial_run import partial_folder

train_module = importlib.import_module("edgeqlora.train")
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


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """Folder with one recording of noise."""
    folder = tmp_path_factory.mktemp("noise")
    soundfile.write(folder / "a.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 16000)
    return folder


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


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


def with_rank(wer: float, figures: dict) -> dict:
    return {"eval_rank": wer, "eval_wer": wer, **figures}


def test_resume_after_early_stop_ends_with_the_same_adapter(tiny_model, clips, tmp_path, monkeypatch):
    """Killed when it had stopped early at step 6, before its output was written: that is what the copy is."""
    from edgeqlora import train as module

    wers = iter([10.0, 90.0, 95.0, 1.0, 1.0, 1.0])
    figures = {"eval_cer": 0.0, "eval_loss": 0.0, "eval_clips": 1, "eval_incomplete": 0, "eval_seconds": 0.0}
    monkeypatch.setattr(module.DevScore, "__call__", lambda self: with_rank(next(wers), figures))
    settings = settings_of(tiny_model, clips, tmp_path / "straight", steps=12, patience=2, lora_dropout=0.1)
    write_output = module.write_output

    def copy_and_write(settings, output, *args):
        if output.name == "straight":
            shutil.copytree(partial_folder(output), partial_folder(tmp_path / "resumed"))
        return write_output(settings, output, *args)

    monkeypatch.setattr(module, "write_output", copy_and_write)
    cards = [train(settings), train(dataclasses.replace(settings, output=str(tmp_path / "resumed")), resume=True)]
    assert adapter_bytes(tmp_path / "resumed") == adapter_bytes(tmp_path / "straight")
    assert [(card["best_step"], card["dev_wer"]["value"], card["steps"]) for card in cards] == [(2, 10.0, 6)] * 2


def corpus(folder: Path) -> Path:
    """A LibriSpeech folder of two clips."""
    chapter = folder / "1" / "2"
    chapter.mkdir(parents=True)
    for number in (0, 1):
        tone(chapter / f"1-2-000{number}.flac", 400 + 100 * number)
    (chapter / "1-2.trans.txt").write_text("1-2-0000 STOP\n1-2-0001 LIGHTS ON\n")
    return folder


def tone(path: Path, hertz: float) -> None:
    import numpy as np
    import soundfile

    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * np.arange(8000) / 16000), 16000)


def ranks_file(path: Path, rank: int, names: list[str]) -> None:
    path.write_text(json.dumps({"schema": "edgeqlora.lora.ranks/1", "rank_pattern": dict.fromkeys(names, rank)}))


def test_resume_with_other_data_is_refused_by_name(tiny_model, clips, straight, tmp_path, monkeypatch):
    """Every input is changed in its turn: the message names it and no other; put back, the run goes on."""
    from edgeqlora import train as module

    names = list(json.loads((straight / "ranks.json").read_text())["rank_pattern"])
    data = other_manifest(clips, tmp_path / "m.jsonl", audio=str(tmp_path / "first.wav"))
    tone(tmp_path / "first.wav", 500)
    tone(tmp_path / "noise" / "a.wav", 300)
    tone(tmp_path / "room" / "r.wav", 200)
    ranks_file(tmp_path / "ranks.json", 2, names)
    given = {
        "train": str(data),
        "dev": str(corpus(tmp_path / "corpus")),
        "ranks": str(tmp_path / "ranks.json"),
        "steps": 1,
    }
    settings = settings_of(
        tiny_model, clips, tmp_path / "out", noise=str(tmp_path / "noise"), room=str(tmp_path / "room"), **given
    )
    real_write = module.write_output
    monkeypatch.setattr(module, "write_output", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(settings)
    monkeypatch.setattr(module, "write_output", real_write)
    monkeypatch.setattr(module, "_say_plan", lambda *args: None)
    for path, name in (
        (data, "train"),
        (tmp_path / "first.wav", "train audio"),
        (tmp_path / "corpus/1/2/1-2.trans.txt", "dev"),
        (tmp_path / "corpus/1/2/1-2-0001.flac", "dev audio"),
        (tmp_path / "noise" / "a.wav", "noise audio"),
        (tmp_path / "room" / "r.wav", "room audio"),
        (tmp_path / "ranks.json", "ranks"),
    ):
        before, status = path.read_bytes(), path.stat()
        if path.suffix in (".wav", ".flac"):
            tone(path, 777)
        elif path == data:
            other_manifest(clips, data, audio=str(tmp_path / "first.wav"), text="another text")
        elif path.name == "ranks.json":
            ranks_file(path, 3, names)
        else:
            path.write_text(path.read_text().replace("STOP", "GO"))
        with pytest.raises(UserError, match=f"--resume, but {name} changed since the unfinished run"):
            train(settings, resume=True)
        path.write_bytes(before)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    tone(tmp_path / "noise" / "b.wav", 300)
    with pytest.raises(UserError, match="--resume, but noise and noise audio changed since"):
        train(settings, resume=True)
    (tmp_path / "noise" / "b.wav").unlink()
    (tmp_path / "noise").rename(tmp_path / "moved")
    card = train(dataclasses.replace(settings, noise=str(tmp_path / "moved")), resume=True)
    assert card["steps"] == 1


def test_resume_with_half_an_adapter_is_refused(tiny_model, clips, tmp_path, monkeypatch):
    from edgeqlora import train as module

    settings = settings_of(tiny_model, clips, tmp_path / "out")
    real_write = module.write_output
    monkeypatch.setattr(module, "write_output", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(settings)
    monkeypatch.setattr(module, "write_output", real_write)
    half_an_adapter(partial_folder(tmp_path / "out"))
    with pytest.raises(UserError, match=r"checkpoint-6: the adapter does not fit the model: \d+ of 64 weights"):
        train(settings, resume=True)


def half_an_adapter(partial: Path) -> None:
    """The newest checkpoint without the decoder's weights, and with a record that says so."""
    from safetensors.torch import save_file

    from edgeqlora.training import checkpoint
    from edgeqlora_jetson.files import sha256_file

    folder = checkpoint.last_complete(partial)
    path = folder / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if ".decoder." not in name}, path)
    record = json.loads((folder / checkpoint.COMPLETE).read_text())
    record["sha256"][path.name] = sha256_file(path)
    (folder / checkpoint.COMPLETE).write_text(json.dumps(record))
