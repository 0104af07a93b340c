"""`edgeqlora plan` as a user types it: on a CPU measured, for a board counted, and refused with what is allowed."""

import json

import pytest

from edgeqlora.demo import model_dir
from edgeqlora.profiles.load import profiles_dir


def test_on_a_cpu_the_graphs_are_measured_here(command, tmp_path):
    code, said = command("plan", model_dir(), "--window-s", "1,3", "--threads", 1, "-o", tmp_path / "plan.json")
    assert code == 0, said
    content = json.loads((tmp_path / "plan.json").read_text())
    assert (content["schema"], content["target"], content["measured_here"]) == ("edgeqlora.plan/1", "cpu", True)
    short, long = content["windows"]
    assert [row["precision"] for row in (short, long)] == ["int8", "int8"]
    assert 0 < short["encoder_ms"] < long["encoder_ms"]
    assert 30 < short["memory_mib"] <= 1.1 * long["memory_mib"]
    assert short["token_ms"] > 0
    assert short["fits"] is None
    assert "Fits        not known: the profile cpu names no memory_budget_mib" in said
    assert f"Speed       the window full of speech (9 tokens) {long['window_ms']:.0f} ms, real-time factor " in said
    assert "How         measured on this machine, on the model's graphs with random weights" in said


@pytest.mark.parametrize("model", ["whisper", "wav2vec2"])
def test_for_a_board_work_and_memory_are_counted_and_what_is_assumed_is_said(command, tmp_path, model):
    code, said = command("plan", model_dir(model), "-t", "jetson-nano", "--window-s", "3", "--batch", 2)
    assert code == 0, said
    assert f"Plan        {model_dir(model)} on jetson-nano: " in said
    assert ", fp16, window of 3 s, 2 clips at a time" in said
    assert "Fits        yes: the profile allows 2457 MiB" in said
    assert (
        "35 % of 472 GFLOPS (CUDA cores at 921 MHz, tensor cores not counted) and 60 % of 25.6 GB/s are assumed" in said
    )
    assert said.rstrip().count("Not run on hardware") == 1


def test_a_board_that_is_too_small_says_what_would_fit(command, tmp_path):
    text = (
        (profiles_dir() / "jetson-nano.toml")
        .read_text(encoding="utf-8")
        .replace('name = "jetson-nano"', 'name = "small"', 1)
    )
    own = tmp_path / "small.toml"
    own.write_text(text.replace("memory_budget_mib = 2457", "memory_budget_mib = 600"), encoding="utf-8")
    code, said = command("plan", model_dir(), "-t", own, "--window-s", "3")
    assert code == 0, said
    assert (
        "Fits        NO: the profile allows 600 MiB; a shorter --window-s takes less for activations; else a smaller model"
        in said
    )


def test_the_default_window_is_one_that_the_profile_takes_and_a_longer_one_is_refused(command, tmp_path):
    text = (profiles_dir() / "cpu.toml").read_text(encoding="utf-8").replace('name = "cpu"', 'name = "own"', 1)
    own = tmp_path / "own.toml"
    own.write_text(text.replace("max_window_s = 30.0", "max_window_s = 2.0"), encoding="utf-8")
    code, said = command("plan", model_dir(), "-t", own, "--threads", 1)
    assert code == 0, said
    assert "window of 2 s" in said
    code, said = command("plan", model_dir(), "-t", own, "--window-s", "11")
    assert code == 2
    assert f"window_s=11: {model_dir()} on own takes at most 2 s; pass a shorter --window-s" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--precision", "int8", "-t", "jetson-nano"), "precision='int8': jetson-nano is planned for in fp16, fp32"),
        (("--precision", "fp16"), "precision='fp16': cpu is planned for in int8, fp32"),
        (("--batch", "2"), "batch=2: on a CPU clips are measured one at a time; leave --batch away"),
        (("--batch", "9", "-t", "jetson-nano"), "batch=9: jetson-nano is asked for 1 to 4 clips at a time"),
        (("--window-s", "31"), "window_s=31.0: allowed is 0.5 to 30 s in steps of 0.02 s"),
        (("--threads", "0"), "threads=0: allowed are 1 to 1024; default: one for each core"),
        (
            ("--threads", "2", "-t", "jetson-nano"),
            "threads=2: jetson-nano is planned for by its GPU; leave --threads away",
        ),
        (("-o", "."), ". is no file: give --output the name of a JSON file"),
        (("-t", "jetson-nan"), "did you mean 'jetson-nano'"),
    ],
)
def test_what_cannot_be_planned_is_refused(command, flags, message):
    code, said = command("plan", model_dir(), *flags)
    assert code == 2
    assert message in said
    assert "counting" not in said


def test_a_folder_that_is_no_model_or_of_another_family_is_refused(command, tmp_path):
    code, said = command("plan", tmp_path)
    assert code == 2
    assert f"{tmp_path}: config.json cannot be read" in said
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    code, said = command("plan", tmp_path)
    assert code == 2
    assert "holds a 'bert' model: export has graphs of wav2vec2 and whisper models" in said
