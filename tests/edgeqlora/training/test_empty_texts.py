"""Clips in which nobody speaks: a model that is trained on some may say nothing, from training to the board."""

import json
from pathlib import Path

import pytest
from training_runs import other_manifest

from edgeqlora.demo import model_dir

WINDOW = ("--window-s", 1)
TRAIN = (*WINDOW, "--steps", 40, "--batch-size", 8, "--learning-rate", "0.01", "--cache", "none")


@pytest.fixture(scope="module")
def quiet(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips whose texts are empty but for the first: a model trained on them says nothing."""
    path = tmp_path_factory.mktemp("quiet") / "quiet.jsonl"
    path = other_manifest(clips, path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps({**row, "text": "" if number else "stop"}) + "\n" for number, row in enumerate(rows))
    )
    return path


def n_empty(command, source: Path, data: Path, report: Path) -> int:
    window = () if (source / "manifest.json").exists() else WINDOW  # a bundle has its own
    code, said = command("evaluate", source, "-d", data, *window, "-o", report)
    assert code == 0, said
    lines = report.with_suffix(".jsonl").read_text().splitlines()
    return sum(json.loads(line)["hypothesis"] == "" for line in lines)


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_a_model_trained_on_empty_texts_says_nothing_from_training_to_the_bundle(
    method: str, tiny_model: Path, quiet: Path, command, tmp_path: Path
):
    model = tmp_path / "model"
    base = tiny_model if method == "full" else model_dir()  # adapters cannot teach a random one: its embedding is fixed
    code, said = command("train", "-m", base, "--train", quiet, "--method", method, *TRAIN, "-o", model)
    assert code == 0, said
    assert "7 clips have an empty text: where nobody speaks the model may say nothing" in said
    assert json.loads((model / "card.json").read_text())["data"]["n_empty_texts"] == 7
    assert n_empty(command, model, quiet, tmp_path / "trained.json") >= 7
    if method == "qlora":
        code, said = command("merge", model, "-o", tmp_path / "merged", "--dev", quiet)
        assert code == 0, said
        model = tmp_path / "merged"
        assert n_empty(command, model, quiet, tmp_path / "merged.json") >= 7
    code, said = command(
        "export", model, "-d", quiet, *WINDOW, "-o", tmp_path / "bundle", "--target", "cpu", "--language", "en"
    )  # fmt: skip
    assert code == 0, said
    decoder = json.loads((tmp_path / "bundle/manifest.json").read_text())["decoder"]
    assert (decoder["begin_suppress_ids"], decoder["eos_ids"]) == ([220], [503])
    assert n_empty(command, tmp_path / "bundle", quiet, tmp_path / "bundle.json") >= 7


def test_a_model_that_heard_speech_in_every_clip_says_something(tiny_model: Path, clips: Path, command, tmp_path: Path):
    code, said = command("train", "-m", tiny_model, "--train", clips, *TRAIN, "--steps", 2, "-o", tmp_path / "model")
    assert code == 0, said
    assert "empty text" not in said
    assert n_empty(command, tmp_path / "model", clips, tmp_path / "said.json") == 0
