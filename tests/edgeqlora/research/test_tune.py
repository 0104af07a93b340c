"""`train --tune N` as a user types it."""

import json
import os
import subprocess

import pytest
from warm_start import warm_edgeqlora

from edgeqlora.research.tune import search_space
from edgeqlora.settings import make_settings, read_settings


@pytest.fixture(scope="module")
def line(tiny_model, clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("tune") / "adapter"
    dev = clips.parent / "dev.jsonl"
    arguments = ["train", "-m", tiny_model, "--train", clips, "--dev", dev, "-o", out, "--language", "en"]
    return [*arguments, "--steps", 6, "--eval-every", 2, "--batch-size", 4, "--cache", "none", "--window-s", 2]


@pytest.fixture(scope="module")
def searched(line, command):
    code, said = command(*line, "--tune", 3)
    assert code == 0, said
    return said, line[line.index("-o") + 1].with_name("adapter.tune")


def test_a_search_tries_the_settings_as_they_are_first_and_writes_what_is_best(searched, line, command):
    said, folder = searched
    trials = [json.loads(text) for text in (folder / "trials.jsonl").read_text().splitlines()]
    assert len(trials) == 3
    assert trials[0]["params"]["learning_rate"] == pytest.approx(1e-3)
    assert trials[0]["params"]["rank"] == 8
    assert len({trial["params"]["learning_rate"] for trial in trials}) == 3
    assert [bool(trial.get("as_given")) for trial in trials] == [True, False, False]
    found = json.loads((folder / "tune.json").read_text())
    done = {trial["number"]: trial["value"] for trial in trials if trial["state"] == "complete"}
    assert found["best"]["number"] == min(done, key=lambda number: (done[number], number))
    assert found["given"]["eval_loss"] > 0
    best = read_settings(folder / "best.toml")
    assert best.get("learning_rate", 1e-3) == pytest.approx(trials[found["best"]["number"]]["params"]["learning_rate"])
    assert "as they were" in said
    assert "score it on other clips" in said
    assert "train --config" in said.rsplit("Next: ", 1)[1]
    assert not list(folder.glob("trial-*"))
    for picture in found["pictures"]:
        assert (folder / picture.rsplit("/", 1)[-1]).stat().st_size > 3000
    code, said = command("train", "--config", folder / "best.toml", "--dry-run")
    assert code == 0, said


def test_the_same_command_goes_on_and_another_search_is_refused(searched, line, command):
    _, folder = searched
    code, said = command(*line, "--tune", 4)
    assert code == 0, said
    trials = [json.loads(text) for text in (folder / "trials.jsonl").read_text().splitlines()]
    assert len({trial["params"]["learning_rate"] for trial in trials}) == 4, "another process draws other settings"
    code, said = command(*line, "--tune", 5, "--weight-decay", 0.1)
    assert (code, "holds a search that began with another weight_decay" in said) == (2, True), said


def test_two_processes_started_at_once_share_a_search(line, tmp_path):
    """Without a lock optuna's tables were made twice, and both drew the same settings."""
    out = line.index("-o") + 1
    arguments = map(str, [*line[:out], tmp_path / "adapter", *line[out + 1 :], "--tune", 4])
    with warm_edgeqlora(tmp_path) as programs:
        given = {"env": {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}, "stderr": subprocess.STDOUT}
        typed = ["edgeqlora", *arguments]
        running = [subprocess.Popen(typed, stdout=subprocess.PIPE, text=True, **given) for _ in range(2)]
        said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert all("as they were" in text for text in said)
    trials = [json.loads(text) for text in (tmp_path / "adapter.tune" / "trials.jsonl").read_text().splitlines()]
    assert 4 <= sum(trial["state"] in ("complete", "pruned") for trial in trials) <= 5
    assert [bool(trial.get("as_given")) for trial in trials].count(True) == 1
    assert len({trial["params"]["learning_rate"] for trial in trials}) == len(trials)


def test_a_search_in_the_wrong_place_is_refused(line, command, monkeypatch):
    for flag in ("--dry-run", "--resume"):
        code, said = command(*line, "--tune", 5, flag)
        assert (code, "--tune with --dry-run or --resume" in said) == (2, True), said
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, said = command(*line, "--tune", 5)
    assert (code, "--tune under torchrun" in said) == (2, True), said


def test_without_dev_data_or_with_one_trial_there_is_no_search(line, command):
    dev = line.index("--dev")
    code, said = command(*line[:dev], *line[dev + 2 :], "--tune", 5)
    assert (code, "--tune compares trials on dev data: pass --dev" in said) == (2, True), said
    code, said = command(*line, "--tune", 1)
    assert (code, "tune=1: allowed is 2 or more" in said) == (2, True), said


def test_what_is_searched_follows_from_what_was_given(tiny_model, clips, tmp_path):
    given = {"base_model": str(tiny_model), "train": str(clips), "output": str(tmp_path / "a")}
    assert set(search_space(make_settings(given)).defaults) == {
        "learning_rate", "warmup_ratio", "speed_perturb", "rank", "alpha_per_rank", "lora_dropout", "spec_augment",
    }  # fmt: skip
    ia3 = search_space(make_settings({**given, "method": "ia3"}))
    assert not {"rank", "alpha_per_rank", "lora_dropout"} & set(ia3.defaults)
    assert ia3.defaults["learning_rate"] == 3e-2
    full = search_space(make_settings({**given, "method": "full"}))
    assert set(full.defaults) == {"learning_rate", "warmup_ratio", "speed_perturb", "spec_augment"}
    assert full.rates[1] < search_space(make_settings(given)).rates[1]
    noisy = search_space(make_settings({**given, "noise": str(clips), "ranks": "uniform:5"}))
    assert "noise_probability" in noisy.defaults
    assert "rank" not in noisy.defaults  # not one of those that are searched: it stays
    changes = noisy.settings(make_settings(given), {"learning_rate": 1e-3, "speed_perturb": True})
    assert changes == {"learning_rate": 1e-3, "speed_perturb": [0.9, 1.0, 1.1]}
