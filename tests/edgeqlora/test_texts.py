"""Texts along the whole line, as a user types it: languages without spaces, added tokens, and Whisper's spellings."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from edgeqlora.cli.main import app
from edgeqlora_jetson.__main__ import main as runner
from edgeqlora_jetson.decoders import Detokenizer

STEPS = ["--window-s", "1", "--steps", "2", "--batch-size", "4", "--eval-every", "1", "--cache", "none"]
CHINESE = ["今天天气很好", "请把厨房的灯打开"]


def run(*arguments) -> str:
    """What the command prints."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refusal(*arguments) -> str:
    """The message of a command that is refused."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code != 0
    return str(result.exception)


def changed_model(source: Path, folder: Path, words: list[str], special: bool, **generation) -> Path:
    """A copy of a model with more tokens in its vocabulary and other fields in its generation_config."""
    from transformers import WhisperForConditionalGeneration, WhisperTokenizer

    from edgeqlora.models.family import load_processor

    tokenizer = WhisperTokenizer.from_pretrained(source)
    model = WhisperForConditionalGeneration.from_pretrained(source)
    tokenizer.add_tokens(words, special_tokens=special)
    model.resize_token_embeddings(len(tokenizer))
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    load_processor(str(source)).save(folder)
    tokenizer.save_pretrained(folder)
    return folder


def manifest_of(clips: Path, path: Path, texts: list[str]) -> Path:
    """The clips with other texts, in turn."""
    rows = [json.loads(line) for line in clips.read_text().splitlines()]
    for i, row in enumerate(rows):
        row.update(audio=str(clips.parent / row["audio"]), text=texts[i % len(texts)])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def multilingual(tiny_model, tmp_path_factory) -> Path:
    languages = [f"<|{code}|>" for code in ("zh", "tr", "ja")]
    folder = tmp_path_factory.mktemp("multilingual") / "model"
    return changed_model(tiny_model, folder, languages, True, is_multilingual=True, language="zh")


@pytest.fixture(scope="module")
def line(multilingual, clips, tmp_path_factory) -> dict:
    """Train, merge, export and evaluate on Chinese: the folders, and what each command said."""
    folder = tmp_path_factory.mktemp("zh")
    data = manifest_of(clips, folder / "zh.jsonl", CHINESE)
    dev = manifest_of(clips.with_name("dev.jsonl"), folder / "dev.jsonl", CHINESE)
    adapter, merged, bundle = (folder / name for name in ("adapter", "merged", "bundle"))
    said = {
        "train": run(
            "train", "-m", multilingual, "--train", data, "--dev", dev, "-o", adapter, "--language", "zh", *STEPS
        ),
        "merge": run("merge", adapter, "-o", merged),
        "export": run("export", merged, "--target", "cpu", "-d", data, "--eval-clips", 4, "-o", bundle),
        "evaluate": run("evaluate", bundle, "-d", data, "-o", folder / "report.json"),
    }
    return {"adapter": adapter, "merged": merged, "bundle": bundle, "data": data, "dev": dev, "said": said}


def test_a_language_without_spaces_is_trained_and_chosen_by_characters(line, multilingual, tmp_path):
    card = json.loads((line["adapter"] / "card.json").read_text())
    assert (card["choose_by"], card["dev_wer"]["value"]) == ("cer", None)
    assert card["dev_wer"]["reason"] == "zh is written without spaces between words: read CER"
    assert card["dev_cer"]["value"] > 0
    assert "dev CER" in line["said"]["train"]
    assert "best dev CER" in line["said"]["train"]
    assert "WER" not in line["said"]["train"] + line["said"]["merge"]
    rows = [json.loads(text) for text in (line["adapter"] / "log.jsonl").read_text().splitlines()]
    assert [row["eval_wer"] for row in rows if "eval_cer" in row] == [None, None]
    card = json.loads((line["merged"] / "card.json").read_text())
    assert card["choose_by"] == "cer"
    assert all(figures["wer"]["value"] is None for figures in card["candidates"].values())
    data = ["--train", line["data"], "--dev", line["dev"], "-o", tmp_path / "out", "--language", "zh", *STEPS]
    assert "choose_by='wer': zh is written" in refusal("train", "-m", multilingual, *data, "--choose-by", "wer")


def test_a_language_without_spaces_is_measured_by_characters(line, tmp_path, capsys):
    table = [text.split()[0] for text in line["said"]["evaluate"].splitlines() if text.startswith("  ")]
    assert table.index("CER") < table.index("WER")
    assert "zh is written without spaces between words: read CER   normaliser basic-unicode" in line["said"]["evaluate"]
    assert "tok:zh" in line["said"]["evaluate"]
    assert "whisper-english" not in line["said"]["evaluate"]
    report = line["data"].parent / "report.json"
    assert json.loads(report.read_text())["leading"] == "cer"
    first = json.loads(report.with_suffix(".jsonl").read_text().splitlines()[0])
    assert (first["n_reference"], first["counted"]) == (6, "characters without spaces")
    output = tmp_path / "bench.json"
    flags = ["--repeats", "1", "--min-count", "1", "--warmup", "0", "--power", "none", "--output", str(output)]
    assert runner(["bench", str(line["bundle"]), *flags]) == 0
    report = json.loads(output.read_text())
    assert report["leading"] == "cer"
    assert report["accuracy"]["basic-unicode"]["wer"]["reason"].startswith("zh is written without spaces")
    shown = capsys.readouterr().out
    assert shown.index("CER (basic-unicode)") < shown.index("WER (basic-unicode)")


@pytest.mark.parametrize("folder", ["merged", "bundle"])
def test_pieces_of_a_cut_recording_are_joined_as_the_language_is_written(line, tmp_path, monkeypatch, folder):
    monkeypatch.setattr(Detokenizer, "__call__", lambda self, tokens: "今天")
    audio = np.random.default_rng(0).normal(0, 0.1, 40000).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", audio, 16000)
    (tmp_path / "long.jsonl").write_text(json.dumps({"audio": "long.wav", "text": "今天" * 3}) + "\n")
    run("evaluate", line[folder], "-d", tmp_path / "long.jsonl", "-o", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["cut_clips"] == 1
    assert json.loads((tmp_path / "report.jsonl").read_text())["hypothesis"].strip("今天") == ""
    assert report["cer"]["basic-unicode"]["value"] < 100


@pytest.mark.parametrize(
    "command",
    [
        ["train", "-m", "{model}", "--train", "{clips}", "-o", "{out}"],
        ["evaluate", "{model}", "-d", "{clips}"],
        ["merge", "{adapter}", "-o", "{out}"],
    ],
)
def test_plain_basic_is_refused_with_both_names(line, multilingual, tmp_path, command):
    names = {"model": multilingual, "clips": line["data"], "out": tmp_path / "out", "adapter": line["adapter"]}
    message = refusal(*(part.format(**names) for part in command), "--normaliser", "basic")
    assert "basic-unicode" in message
    assert "whisper-basic" in message


@pytest.mark.parametrize("word", ["Z\u00fcrich", "\u0111em", "\u6771\u4eac"])
def test_an_added_token_with_accents_reads_the_same_on_both_machines(tiny_model, clips, tmp_path, word):
    """The word is all that this model can say; its letters are also signs that stand for bytes."""
    config = json.loads((tiny_model / "config.json").read_text())
    others = [i for i in range(config["vocab_size"]) if i != config["eos_token_id"]]
    model = changed_model(
        tiny_model,
        tmp_path / "model",
        [word],
        False,
        suppress_tokens=others,
        begin_suppress_tokens=[config["eos_token_id"]],
    )
    data, windows = manifest_of(clips, tmp_path / "rows.jsonl", [word]), ["--window-s", "1"]
    said = run("export", model, "--target", "cpu", "-d", data, "-o", tmp_path / "bundle", "--eval-clips", 4, *windows)
    assert "gates passed" in said
    texts = []
    for source, flags in ((model, windows), (tmp_path / "bundle", [])):
        run("evaluate", source, "-d", data, *flags, "-o", tmp_path / "report.json")
        rows = [json.loads(row) for row in (tmp_path / "report.jsonl").read_text().splitlines()]
        texts.append([row["hypothesis"] for row in rows])
    assert texts[0] == texts[1]
    assert all(text and not text.replace(word, "") for text in texts[0])


def test_the_table_of_spellings_travels_from_the_model_to_the_bundle(tiny_model, clips, tmp_path, monkeypatch):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "normalizer.json").write_text('{"colour": "color"}')
    data = manifest_of(clips, tmp_path / "rows.jsonl", ["colour"])
    adapter, full, merged, bundle = (tmp_path / name for name in ("adapter", "full", "merged", "bundle"))
    dev = manifest_of(clips.with_name("dev.jsonl"), tmp_path / "dev.jsonl", ["colour"])
    data_flags = ["--train", data, "--dev", dev]
    run("train", "-m", model, *data_flags, "-o", adapter, *STEPS)
    run("train", "-m", model, *data_flags, "-o", full, "--method", "full", *STEPS)
    run("merge", adapter, "-o", merged)
    run("export", merged, "--target", "cpu", "-d", data, "--eval-clips", 2, "-o", bundle)
    monkeypatch.setattr(Detokenizer, "__call__", lambda self, tokens: "color")
    for folder in (adapter, full, merged, bundle):
        assert json.loads((folder / "normalizer.json").read_text()) == {"colour": "color"}
        run("evaluate", folder, "-d", data, "-o", tmp_path / "report.json")
        wer = json.loads((tmp_path / "report.json").read_text())["wer"]
        assert (wer["whisper-english"]["value"], wer["basic-unicode"]["value"]) == (0.0, 100.0), folder
