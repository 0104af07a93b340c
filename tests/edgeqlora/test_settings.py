"""Settings: TOML and flags, types, ranges, and messages that say what is allowed."""

from pathlib import Path

import pytest

from edgeqlora.errors import UserError
from edgeqlora.settings import make_settings, parse_windows, read_settings, write_settings

NEEDED = {"base_model": "m", "train": "t", "output": "o"}


def test_defaults():
    settings = make_settings(NEEDED)
    assert settings.method == "qlora"
    assert settings.resolved_learning_rate() == 1e-3
    assert make_settings({**NEEDED, "method": "full"}).resolved_learning_rate() == 1e-4


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"batch_size": 0}, "batch_size=0 is out of range: allowed is 1 to 65536"),
        ({"batch_size": "8"}, "batch_size='8': expected int"),
        ({"method": "qlorra"}, r"method='qlorra': allowed are qlora, lora, ia3, prefix, full \(did you mean qlora\?\)"),
        ({"steps": 5, "epochs": 1.0}, "give one of them"),
        ({"learning_rate": float("nan")}, "learning_rate=nan is out of range"),
        ({"window_s": "0.1"}, "allowed is 0.5 to 30 s"),
        ({"window_s": "2.013"}, "steps of 0.02 s"),
        ({"window_s": "two"}, "is not a number"),
        ({"noise_snr_db": [20, 5]}, "the lowest and the highest"),
        ({"noise_snr_db": [float("nan"), 5.0]}, "the lowest and the highest"),
        ({"noise_snr_db": [5.0, float("inf")]}, "the lowest and the highest"),
        ({"speed_perturb": [3.0]}, "allowed is 0.5 to 2.0"),
        ({"output": ""}, "output is not given: pass --output"),
        ({"report_to": ["email"]}, "allowed are tensorboard, mlflow, wandb"),
        ({"patience": 3}, "needs dev data"),
    ],
)
def test_bad_values_name_value_and_range(change, text):
    with pytest.raises(UserError, match=text):
        make_settings({**NEEDED, **change})


def test_written_settings_read_back_the_same(tmp_path: Path):
    needed = {"base_model": "owner/m", "train": str(tmp_path / "t"), "output": str(tmp_path / "o")}
    settings = make_settings(
        {**needed, "steps": 7, "window_s": "2,5", "speed_perturb": [0.9, 1.1], "spec_augment": True}
    )
    write_settings(settings, tmp_path / "c.toml")
    assert make_settings(read_settings(tmp_path / "c.toml")) == settings


def test_unknown_setting_suggests_the_nearest(tmp_path: Path):
    (tmp_path / "c.toml").write_text("lerning_rate = 1e-3\n")
    with pytest.raises(UserError, match="did you mean 'learning_rate'"):
        read_settings(tmp_path / "c.toml")


def test_broken_toml_and_missing_file(tmp_path: Path):
    (tmp_path / "c.toml").write_text("steps = = 3\n")
    with pytest.raises(UserError, match="not valid TOML"):
        read_settings(tmp_path / "c.toml")
    with pytest.raises(UserError, match="--save-config"):
        read_settings(tmp_path / "none.toml")


def test_paths_in_a_config_mean_its_folder_whether_they_are_there_or_not(tmp_path: Path, monkeypatch):
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "c.toml").write_text(
        'train = "data.jsonl"\ndev = "../dev.jsonl"\noutput = "out"\nnoise = "/noise"\nroom = "~/rooms"\n'
        'ranks = "ranks.json"\ncache = "features"\nbase_model = "model"\n'
    )
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    assert read_settings(Path("run/c.toml")) == {
        "train": str(folder / "data.jsonl"),
        "dev": str(tmp_path / "dev.jsonl"),
        "output": str(folder / "out"),
        "noise": "/noise",
        "room": "/home/me/rooms",
        "ranks": str(folder / "ranks.json"),
        "cache": str(folder / "features"),
        "base_model": str(folder / "model"),
    }


def test_names_in_a_config_are_no_paths(tmp_path: Path):
    names = {"train": "hf:a/b", "dev": "", "ranks": "uniform:4", "cache": "none", "base_model": "openai/whisper-tiny"}
    (tmp_path / "c.toml").write_text("".join(f'{name} = "{value}"\n' for name, value in names.items()))
    assert read_settings(tmp_path / "c.toml") == names


def test_windows():
    assert parse_windows("auto") is None
    assert parse_windows("5,2") == [2.0, 5.0]


def test_a_tracker_that_is_not_installed_is_named_before_training(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install mlflow"):
        make_settings({**NEEDED, "report_to": ["mlflow"]})


def test_a_folder_or_binary_file_as_config(tmp_path: Path):
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "c.toml"):
        with pytest.raises(UserError, match="cannot be read as TOML"):
            read_settings(path)


@pytest.mark.parametrize(("generation", "precision"), [(7, "fp16"), (8, "bf16")])
def test_auto_takes_bf16_only_from_a_gpu_that_computes_it(generation, precision, monkeypatch):
    """A Turing (7.5) emulates bf16: torch calls that supported, and it is slower than fp32."""
    from types import SimpleNamespace

    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=generation))
    settings = make_settings({"base_model": "m", "train": "t", "output": "o"})
    assert settings.chosen_precision() == precision
