"""`edgeqlora ranks` as a user types it, and `train --ranks` with what it wrote."""

import json
import random
import re

import pytest

from edgeqlora.demo import model_dir


@pytest.fixture(scope="module")
def calibrated(tiny_model, clips, command, tmp_path_factory, without_pictures):
    path = tmp_path_factory.mktemp("ranks") / "ranks.json"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("edgeqlora.lora.pictures._save", without_pictures)  # but this one draws
        code, said = command("ranks", "-m", tiny_model, "--train", clips, "-o", path, "--language", "en")
    assert code == 0, said
    return path, said


def test_ranks_are_measured_written_and_drawn(calibrated):
    path, said = calibrated
    content = json.loads(path.read_text())
    assert content["schema"] == "edgeqlora.lora.ranks/1"
    assert content["budget"]["spent"] == content["budget"]["parameters"]
    assert set(content["rank_pattern"]) == set(content["scores"]) == set(content["alpha_pattern"])
    for name, scores in content["scores"].items():
        assert scores["rank"] == content["rank_pattern"][name] >= 2
        assert scores["input_entropy"] > 0
        assert 0.01 < scores["nf4_error"] < 0.3
        assert content["alpha_pattern"][name] == pytest.approx(2 * (8 * scores["rank"]) ** 0.5)
    assert len(content["calibration"]["clips"]) == 8
    assert "8 clips are all there are (asked for 64)" in said
    assert "trainable parameters of" in said
    assert "rank correlation" in said
    for name in ("heatmap", "entropy", "scatter"):
        for kind in ("png", "svg"):
            assert (path.parent / f"ranks-{name}.{kind}").stat().st_size > 5000
    assert "edgeqlora train -m" in said.rsplit("Next: ", 1)[1]


def test_training_takes_them_and_trains_the_same_number_of_parameters(calibrated, tiny_model, clips, command, tmp_path):
    path, _ = calibrated
    train = [
        "train",
        "-m",
        tiny_model,
        "--train",
        clips,
        "-o",
        tmp_path / "a",
        "--steps",
        2,
        "--dry-run",
        "--cache",
        "none",
    ]
    trained = set()
    for ranks in ("uniform:8", path):
        code, said = command(*train, "--ranks", ranks)
        assert code == 0, said
        trained.add(re.search(r"([0-9,]+ of [0-9,]+) parameters are trained", said)[1])
    assert len(trained) == 1, trained


def test_rows_in_another_order_give_the_same_file(calibrated, tiny_model, clips, command, tmp_path):
    path, _ = calibrated
    rows = [json.loads(line) for line in clips.read_text().splitlines()]
    for row in rows:
        row["audio"] = str(clips.parent / row["audio"])
    random.Random(1).shuffle(rows)
    (tmp_path / "shuffled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = tmp_path / "other.json"
    code, said = command(
        "ranks", "-m", tiny_model, "--train", tmp_path / "shuffled.jsonl", "-o", other, "--language", "en"
    )
    assert code == 0, said
    one, two = json.loads(path.read_text()), json.loads(other.read_text())
    for key in ("rank_pattern", "alpha_pattern", "scores", "agreement_of_halves", "budget"):
        assert one[key] == two[key], key
    assert one["calibration"]["clips"] == two["calibration"]["clips"]


@pytest.mark.parametrize("mode", ["entropy", "eva", "uniform", "permuted", "depth-u"])
def test_other_modes_spend_the_same(mode, tiny_model, clips, command, tmp_path):
    path = tmp_path / "ranks.json"
    code, said = command(
        "ranks", "-m", tiny_model, "--train", clips, "-o", path, "--mode", mode, "--method", "lora", "--clips", 4
    )
    assert code == 0, said
    content = json.loads(path.read_text())
    assert content["budget"]["spent"] >= 0.999 * content["budget"]["parameters"]
    assert {scores["nf4_error"] for scores in content["scores"].values()} == {None}
    assert (content["agreement_of_halves"] is None) == (mode != "entropy")
    if mode == "uniform":
        assert set(content["rank_pattern"].values()) == {8}


def test_a_ctc_model_gets_ranks_from_the_same_code(command, tmp_path):
    model, data = model_dir().parent / "model-wav2vec2", model_dir().parent / "speech/dev.jsonl"
    path = tmp_path / "ranks.json"
    code, said = command("ranks", "-m", model, "--train", data, "-o", path, "--clips", 12, "--mean-rank", 4)
    assert code == 0, said
    content = json.loads(path.read_text())
    assert {scores["group"] for scores in content["scores"].values()} == {"lower", "upper"}
    assert content["budget"]["spent"] >= 0.999 * content["budget"]["parameters"]
    assert len(set(content["rank_pattern"].values())) > 1


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--mode", "magic"], "mode='magic': allowed are ear, ear-full, entropy"),
        (["--mean-rank", 1], "mean_rank=1, least=2: allowed is 1 <= least <= mean_rank <= 256"),
        (["--mean-rank", 80], "mean_rank=80 is more than the smaller side of"),
        (["--mode", "eva", "--share", "cross=2"], "shares and by_size are of the other modes"),
        (["--clips", 2], "n_clips=2: allowed is 4 or more"),
        (["--share", "cross"], "share='cross': give a group and a factor, such as encoder=1.5"),
        (["--share", "lower=2"], "'lower' is no group of this model, allowed are cross, decoder, encoder"),
        (["--share", "cross=99"], "cross=99, allowed is 0.1 to 10"),
        (["--method", "full"], "method='full': allowed are qlora, lora"),
    ],
)
def test_bad_input_is_refused(flags, text, tiny_model, clips, command, tmp_path):
    code, said = command("ranks", "-m", tiny_model, "--train", clips, "-o", tmp_path / "ranks.json", *flags)
    assert (code, text in said) == (2, True), said
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_kept(calibrated, tiny_model, clips, command):
    path, _ = calibrated
    before = path.read_bytes()
    code, said = command("ranks", "-m", tiny_model, "--train", clips, "-o", path)
    assert (code, "exists: choose another file, or pass --overwrite" in said) == (2, True)
    assert path.read_bytes() == before
