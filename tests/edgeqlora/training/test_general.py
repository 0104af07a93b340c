"""Canary and replay as a user types them."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgeqlora.data.batching import BucketSampler, MixedSampler
from edgeqlora.errors import UserError
from edgeqlora.settings import make_settings
from edgeqlora.training.general import with_replay


@pytest.fixture
def general(tmp_path):
    """Six clips of up to 3 s, longer than the task's window; the last two have no text."""
    rows = []
    for i in range(6):
        audio = 0.2 * np.random.default_rng(i).standard_normal(16000 + 6400 * i).astype(np.float32)
        soundfile.write(tmp_path / f"g{i}.wav", audio, 16000)
        rows.append({"audio": f"g{i}.wav", "text": "" if i > 3 else f"the lights in room {i} are on"})
    path = tmp_path / "general.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def line(tiny_model, clips, tmp_path):
    arguments = ["train", "-m", tiny_model, "--train", clips, "--dev", clips.parent / "dev.jsonl", "-o", tmp_path / "a"]
    return [*arguments, "--language", "en", "--steps", 4, "--eval-every", 2, "--batch-size", 4, "--window-s", 1]


def test_a_canary_is_scored_before_with_each_evaluation_and_in_the_card(line, general, command, tmp_path):
    code, said = command(*line, "--cache", "none", "--canary", general)
    assert code == 0, said
    assert "before training: canary WER" in said
    assert said.count("; canary WER") == 2
    card = json.loads((tmp_path / "a/card.json").read_text())["canary"]
    assert card["n_clips"] == 6
    assert card["windows_s"][-1] >= 3.0  # its own, not the task's second
    assert card["before"]["eval_canary_loss"] > 0
    assert card["after"]["eval_canary_loss"] != card["before"]["eval_canary_loss"]
    assert card["increase"] == pytest.approx(card["after"]["eval_canary_wer"] - card["before"]["eval_canary_wer"])
    assert (card["limit"], card["is_inside"]) == (None, None)
    logged = [json.loads(text) for text in (tmp_path / "a/log.jsonl").read_text().splitlines()]
    assert sum("eval_canary_loss" in row for row in logged) == 2


def test_a_checkpoint_that_forgets_more_than_it_may_is_not_kept(line, general, command, tmp_path, monkeypatch):
    from edgeqlora.training.general import Canary

    rates = iter([10.0, 11.0, 40.0])  # before; step 2; step 4

    def figures(self):
        return {"eval_canary_wer": next(rates), "eval_canary_cer": 1.0, "eval_canary_loss": 1.0}

    monkeypatch.setattr(Canary, "_figures", figures)
    code, said = command(
        *line, "--cache", "none", "--canary", general, "--max-canary-increase", 5, "--learning-rate", 1e-2
    )
    assert code == 0, said
    card = json.loads((tmp_path / "a/card.json").read_text())
    assert card["best_step"] == 2
    assert (card["canary"]["increase"], card["canary"]["is_inside"]) == (1.0, True)


def test_replay_stands_in_every_step_and_labels_are_made_once(line, general, command, tmp_path, monkeypatch):
    from edgeqlora.evaluation.recognise import Recogniser

    recognise, asked = Recogniser.recognise, []

    def counted(self, rows, *arguments, **options):
        found = recognise(self, rows, *arguments, **options)
        if all(Path(row.audio).name.startswith("g") for row in rows):
            asked.append(len(rows))
            found.texts = ["lights on"] * len(rows)
        return found

    monkeypatch.setattr(Recogniser, "recognise", counted)
    replayed = [*line, "--replay", general, "--cache", tmp_path / "cache"]
    code, said = command(*replayed)
    assert code == 0, said
    assert "the base model transcribes 2 clips that have no text" in said
    assert asked == [2]
    card = json.loads((tmp_path / "a/card.json").read_text())
    assert card["replay"] == {"source": str(general), "n_clips": 6, "windows_s": [2.5, 4.0]}
    assert card["settings"]["gradient_accumulation"] == 2
    assert card["windows_s"] == [1.0]  # of the task: replay has its own
    code, said = command(*replayed, "--overwrite")
    assert code == 0, said
    assert asked == [2], "the second run found the labels in the cache"
    for window, is_new in ((2.5, False), (2, True)):
        code, said = command("evaluate", tmp_path / "a", "-d", general, "--limit", 1, "--window-s", window)
        assert (code, "tuned with windows of 1, 2.5, 4 s, not 2 s" in said) == (0, is_new), said


def test_without_replay_and_with_it_the_task_has_the_same_order():
    task = BucketSampler([0.5] * 10, [1.0], 4, 5, seed=1)
    mixed = list(MixedSampler(task, BucketSampler([2.0] * 3, [3.0], 2, 5, seed=2)))
    assert len(mixed) == len(MixedSampler(task, BucketSampler([2.0] * 3, [3.0], 2, 5, seed=2))) == 30
    steps = [mixed[i : i + 6] for i in range(0, 30, 6)]
    assert [key for step in steps for key in step[:4]] == list(task)
    assert all(key.window_s == 3.0 and 10 <= key.row < 13 for step in steps for key in step[4:])


@pytest.mark.parametrize(
    ("share", "batch", "given", "pieces"), [(0.5, 16, 1, 2), (0.25, 16, 1, 4), (0.5, 16, 4, 4), (0.75, 8, 2, 8)]
)
def test_a_share_becomes_parts_of_a_step(share, batch, given, pieces):
    settings = make_settings({"base_model": "m", "train": "t", "output": "o", "replay": "r", "replay_share": share,
                              "batch_size": batch, "gradient_accumulation": given})  # fmt: skip
    found = with_replay(settings).gradient_accumulation
    assert found == pieces
    assert (Fraction(share) * found).denominator == 1


def test_shares_that_cut_clips_are_refused():
    given = {"base_model": "m", "train": "t", "output": "o", "replay": "r"}
    for share, batch in ((0.3, 16), (0.5, 5)):
        with pytest.raises(UserError, match=r"allowed is a share that leaves whole clips, such as 0\.5"):
            with_replay(make_settings({**given, "replay_share": share, "batch_size": batch}))


def test_a_canary_needs_dev_data(line, general, command):
    dev = line.index("--dev")
    code, said = command(*line[:dev], *line[dev + 2 :], "--canary", general)
    assert (code, "--canary is scored whenever dev is: pass --dev" in said) == (2, True), said


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--max-canary-increase", 1], "max_canary_increase=1 is of a canary: pass --canary"),
        (["--canary", "TRAIN"], "dev clips are in the training data"),
        (["--replay", "DEV"], "dev clips are in the training data"),
    ],
)
def test_bad_combinations_are_refused_before_any_work(flags, text, line, clips, command, tmp_path):
    places = {"TRAIN": clips, "DEV": clips.parent / "dev.jsonl"}
    code, said = command(*line, *[places.get(flag, flag) for flag in flags])
    assert (code, text in said) == (2, True), said
    assert not (tmp_path / "a").exists()
