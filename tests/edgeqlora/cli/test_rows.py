"""Which rows and cuts a command takes: the same for data check, train, merge, evaluate and export."""

import json
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edgeqlora.cli.main import app
from edgeqlora.demo import model_dir


def cli(*arguments: object) -> tuple[int, str]:
    """Exit code (2 for an error of the user's) and all that was printed."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is None or isinstance(result.exception, SystemExit):
        return result.exit_code, result.output
    if type(result.exception).__name__ != "UserError":
        raise result.exception
    return 2, f"{result.output}error: {result.exception}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four clips of 0.5 s with different sound, and one recording of 2 s."""
    for name, seconds in (("a", 0.5), ("b", 0.5), ("c", 0.5), ("d", 0.5), ("long", 2.0)):
        samples = np.random.default_rng(ord(name[0])).integers(-8000, 8000, int(16000 * seconds)).astype("<i2")
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(samples.tobytes())
    return tmp_path


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def marked(folder: Path, **splits: str) -> Path:
    rows = [{"audio": f"{name}.wav", "text": name, "split": split} for name, split in splits.items()]
    return write_rows(folder / "rows.jsonl", *rows)


def dry_run(folder: Path, *arguments: object) -> tuple[int, str]:
    common = ["train", "-m", model_dir(), "-o", folder / "out", "--window-s", 3, "--steps", 2, "--cache", "none"]
    return cli(*common, "--batch-size", 2, "--dry-run", *arguments)


def split_rows(output: str) -> dict[str, int]:
    """Rows by split as data check prints them."""
    table = output.split("durations of")[0].splitlines()[1:]
    return {line.split()[0]: int(line.split()[1]) for line in table if line.strip()}


def test_rows_that_carry_a_split_are_chosen_by_the_flag(folder):
    path = marked(folder, a="train", b="train", c="validation", d="test")
    code, output = cli("data", "check", "--train", path, "--dev", path, "--test", path)
    assert (code, split_rows(output)) == (0, {"train": 2, "dev": 1, "test": 1})
    code, output = dry_run(folder, "--train", path, "--dev", path)
    assert code == 0, output
    assert "on 2 clips" in output
    code, output = cli("evaluate", model_dir(), "-d", path, "--window-s", 3)
    assert code == 2
    assert "has the splits test, train, validation: choose with --split" in output
    code, output = cli("evaluate", model_dir(), "-d", path, "--window-s", 3, "--split", "test,validation")
    assert code == 0, output
    assert ": 2 clips," in output


@pytest.mark.parametrize(
    ("splits", "flag", "message"),
    [
        ({"a": "test", "b": "test"}, "--train", "has the splits test, none of them for train: choose with --split"),
        ({"a": "train", "b": "train"}, "--dev", "has the splits train, none of them for dev: choose with --dev-split"),
        ({"a": "train", "b": ""}, "--train", "1 of 2 rows have no split, the others have"),
    ],
)
def test_a_split_for_another_use_is_refused(folder, splits, flag, message):
    other = write_rows(folder / "other.jsonl", {"audio": "d.wav", "text": "d"})
    path = marked(folder, **splits)
    sources = {"--train": other, "--dev": other, flag: path}
    for command in (lambda *a: cli("data", "check", *a), lambda *a: dry_run(folder, *a)):
        code, output = command(*(part for pair in sources.items() for part in pair))
        assert code == 2
        assert message in output


def test_a_corpus_root_never_gives_test_sets_to_training(folder):
    for subset, speaker in (("train-clean-100", 1), ("train-other-500", 2), ("dev-clean", 3), ("test-clean", 4)):
        chapter = folder / "corpus" / subset / str(speaker) / "9"
        chapter.mkdir(parents=True)
        (folder / f"{'abcd'[speaker - 1]}.wav").rename(chapter / f"{speaker}-9-0001.wav")
        (chapter / f"{speaker}-9.trans.txt").write_text(f"{speaker}-9-0001 hello\n")
    corpus = folder / "corpus"
    code, output = cli("data", "check", "--train", corpus, "--dev", corpus, "--test", corpus)
    assert (code, split_rows(output)) == (0, {"train": 2, "dev": 1, "test": 1})
    code, output = cli("data", "check", "--train", corpus, "--split", "train-clean-100")
    assert split_rows(output) == {"train": 1}
    code, output = dry_run(folder, "--train", corpus, "--dev", corpus)
    assert code == 0, output
    assert "on 2 clips" in output


def test_the_same_clip_in_train_and_dev_is_refused_and_the_same_text_said(folder):
    train = write_rows(folder / "train.jsonl", *({"audio": f"{n}.wav", "text": "stop"} for n in "abc"))
    dev = write_rows(folder / "dev.jsonl", {"audio": "./c.wav", "text": "x"}, {"audio": "d.wav", "text": "stop"})
    code, output = dry_run(folder, "--train", train, "--dev", dev)
    assert code == 2
    assert "1 of 2 dev clips are in the training data, e.g." in output
    assert "duplicate" not in cli("data", "check", "--train", train)[1]
    code, output = cli("data", "check", "--train", train, "--dev", dev)
    assert code == 1
    assert "1 x recording present in more than one split" in output
    assert "1 x text that train has too" in output
    write_rows(dev, {"audio": "d.wav", "text": "stop"})
    code, output = dry_run(folder, "--train", train, "--dev", dev)
    assert code == 0, output
    assert "1 of 1 dev clips say a text that is in the training data too" in output


@pytest.mark.parametrize(
    "cut",
    [
        {"start": 0.5, "end": 1.25},
        {"start": 0.5, "duration": 0.75},
        {"offset": 0.5, "duration": 0.75},
        {"start_time": 0.5, "end_time": 1.25},
        {"begin": 0.5, "stop": 1.25, "duration": 0.75},
        {"begin_time": 0.5, "duration": 0.75, "offset": 0.5},
    ],
)
@pytest.mark.parametrize("audio", ["audio", "audio_filepath", "object"])
def test_a_cut_is_made_under_every_spelling(folder, cut, audio):
    row = {"audio": {"path": "long.wav", **cut}} if audio == "object" else {audio: "long.wav", **cut}
    code, output = cli("data", "check", write_rows(folder / "rows.jsonl", {**row, "text": "x"}))
    assert code == 0, output
    assert "0.75  " in output.splitlines()[1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"start_ms": 500}, '"start_ms" looks like a cut and is not read: write "start" and "end" in seconds'),
        ({"segmentEnd": 1.5}, '"segmentEnd" looks like a cut'),
        ({"frame_offset": 8000}, '"frame_offset" looks like a cut'),
        ({"channel": 1}, '"channel" is not read'),
        ({"start": 0.5, "offset": 0.6, "end": 1}, "start=0.5 and offset=0.6 differ and mean the same (start)"),
        ({"sentence": "y"}, '"text" and "sentence" are both there and differ'),
        ('{"audio": "a.wav", "text": "zero", "text": "one"}', 'field "text" is there twice'),
        ({"audio": {"array": [0.1]}}, '"audio" is an object without a path (it has array)'),
        ({"text": None}, 'field "text" is null: write "" for a clip without speech'),
        ({"audio": "https://host/a.wav"}, "is an address: download the file"),
        ({"audio": ["a.wav", "b.wav"]}, 'field "audio" must be text'),
        ({"split": 3}, 'field "split" must be text'),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused_by_name(folder, row, message):
    rows = row if isinstance(row, str) else {"audio": "long.wav", "text": "x", **row}
    code, output = cli("data", "check", write_rows(folder / "rows.jsonl", rows))
    assert code == 2
    assert message in output
    assert "rows.jsonl:1: " in output


def test_a_label_is_the_text_where_no_other_field_is_and_a_class_beside_one(folder):
    alone = write_rows(folder / "alone.jsonl", *({"audio": f"{n}.wav", "label": n} for n in "ab"))
    code, output = cli("data", "check", alone)
    assert code == 0, output
    assert "not read" not in output
    beside = write_rows(folder / "beside.jsonl", *({"audio": f"{n}.wav", "text": n, "label": "tap"} for n in "ab"))
    code, output = cli("data", "check", beside)
    assert code == 0, output
    assert "fields that are not read: label (2 rows)" in output


def test_a_duration_far_from_the_audio_is_refused_wherever_data_is_read(folder):
    path = write_rows(folder / "rows.jsonl", {"audio_filepath": "long.wav", "text": "x", "duration": 0.9})
    message = "1 of 1 rows claim another duration than their audio has"
    for command in (
        lambda: dry_run(folder, "--train", path),
        lambda: cli("evaluate", model_dir(), "-d", path, "--window-s", 3),
    ):
        code, output = command()
        assert code == 2
        assert message in output
    code, output = cli("data", "check", path)
    assert code == 1
    assert "manifest says 0.90 s, audio has 2.00 s" in output


def test_unknown_fields_are_named_once(folder):
    rows = [{"audio": f"{n}.wav", "text": n, "mood": "happy", "gender": "f"} for n in "ab"]
    path = write_rows(folder / "rows.jsonl", *rows)
    assert "fields that are not read: mood (2 rows)" in cli("data", "check", path)[1]
    code, output = dry_run(folder, "--train", path)
    assert code == 0, output
    assert output.count("fields that are not read: mood (2 rows)") == 1
    assert "gender" not in output


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("rows.csv", 'audio,text\na.wav,"one, two"\nb.wav,three\n'),
        ("rows.csv", "file_name;transcription\na.wav;one, two\nb.wav;three\n"),
        ("rows.tsv", "audio\ttext\na.wav\tone, two\nb.wav\tthree\n"),
        ("rows.txt", "path|sentence|speaker\na.wav|one, two|x\nb.wav|three|y\n"),
        ("metadata.csv", 'file_name,text,start,duration\na.wav,"one, two",,\nb.wav,three,0,0.5\n'),
    ],
)
def test_tables_are_read(folder, name, table):
    (folder / name).write_text(table)
    source = folder if name == "metadata.csv" else folder / name
    code, output = cli("data", "check", source, "-o", folder / "report.json")
    assert code == 0, output
    report = json.loads((folder / "report.json").read_text())
    (figures,) = report["splits"].values()
    assert figures["n_rows"] == 2
    assert figures["characters"][","] == 1


def test_audio_folder_with_splits(folder):
    for split, name in (("train", "a"), ("validation", "b"), ("test", "c")):
        (folder / "set" / split).mkdir(parents=True)
        (folder / f"{name}.wav").rename(folder / "set" / split / "x.wav")
        write_rows(folder / "set" / split / "metadata.jsonl", {"file_name": "x.wav", "text": name})
    code, output = cli("data", "check", "--train", folder / "set", "--dev", folder / "set")
    assert (code, split_rows(output)) == (0, {"train": 1, "dev": 1})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("a.wav|hello\n", "a table whose first line names no columns that we know ('a.wav|hello')"),
        ("audio,text\na.wav\n", "rows.csv:2: row has 1 fields, the first line names 2 columns"),
        ("audio,text\na.wav,x,y\n", "rows.csv:2: row has 3 fields, the first line names 2 columns"),
        ("audio,text,text\na.wav,x,y\n", "rows.csv:1: column 'text' is there twice"),
        ("audio,speaker\na.wav,x\n", 'field "text" is missing'),
    ],
)
def test_broken_tables_are_named(folder, table, message):
    (folder / "rows.csv").write_text(table)
    code, output = cli("data", "check", folder / "rows.csv")
    assert code == 2
    assert message in output


def test_quotation_marks_that_an_export_left_are_taken_away(folder):
    sentences = [
        'She said ""zero"" and left.',
        '""One,"" he said.',
        '"""One,"" he said."',
        '"Yes."',
        'say \\"no\\"',
        'a " b',
    ]
    rows = "".join(f"{name}\t{text}\n" for name, text in zip("abcdab", sentences, strict=True))
    (folder / "train.tsv").write_text("path\tsentence\n" + rows.replace("\t", ".wav\t"))
    from edgeqlora.data.manifest import load_rows

    texts = [row.text for row in load_rows(folder / "train.tsv")]
    assert texts == ['She said "zero" and left.', '"One," he said.', '"One," he said.', '"Yes."', 'say "no"', 'a " b']
    assert "4 x text taken out of a table's quotation marks" in cli("data", "check", folder / "train.tsv")[1]


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory) -> Path:
    """The embedded model with language tokens."""
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

    target = tmp_path_factory.mktemp("multilingual")
    tokenizer = WhisperTokenizer.from_pretrained(model_dir())
    model = WhisperForConditionalGeneration.from_pretrained(model_dir(), dtype="float32")
    tokens = ["<|en|>", "<|tr|>", "<|de|>", "<|ka|>", "<|transcribe|>", "<|translate|>"]
    tokenizer.add_tokens(tokens, special_tokens=True)
    model.resize_token_embeddings(len(tokenizer))
    model.generation_config.is_multilingual = True
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    WhisperFeatureExtractor.from_pretrained(model_dir()).save_pretrained(target)
    return target


def run_all(folder: Path, model: Path, path: Path, *flags: str) -> list[tuple[int, str]]:
    train = ["train", "-m", model, "--train", path, "-o", folder / "out", "--window-s", 3, "--steps", 2, "--dry-run"]
    return [
        cli("data", "check", path, "-m", model, *flags),
        cli(*train, "--cache", "none", "--batch-size", 2, *flags),
        cli("evaluate", model, "-d", path, "--window-s", 3, *flags),
    ]


def test_all_rows_in_another_language_are_refused(folder, multilingual):
    rows = [{"audio": f"{n}.wav", "text": n, "language": "Turkish"} for n in "ab"]
    path = write_rows(folder / "rows.jsonl", *rows)
    for code, output in run_all(folder, multilingual, path, "--language", "de"):
        assert code != 0
        assert "2 of 2 rows name another language (tr 2), and --language is de" in " ".join(output.split())


def test_rows_that_agree_give_the_language(folder, multilingual):
    rows = [{"audio": f"{n}.wav", "text": n, "language": "tr-TR"} for n in "ab"]
    path = write_rows(folder / "rows.jsonl", *rows)
    for code, output in run_all(folder, multilingual, path):
        assert code == 0, output
        assert "language tr, as the rows say" in output


def test_some_rows_in_another_language_are_counted(folder, multilingual):
    rows = [
        {"audio": f"{n}.wav", "text": n, "language": code} for n, code in zip("abc", ("de", "tr", "de"), strict=True)
    ]
    path = write_rows(folder / "rows.jsonl", *rows)
    for code, output in run_all(folder, multilingual, path, "--language", "de"):
        assert code == 0, output
        assert "1 of 3 rows name another language (de 2, tr 1) than de" in output


def test_an_english_model_refuses_other_languages(folder):
    path = write_rows(folder / "rows.jsonl", {"audio": "a.wav", "text": "a", "language": "de"})
    code, output = dry_run(folder, "--train", path)
    assert code == 2
    assert "the model writes en only" in output


def test_a_bundle_and_an_export_refuse_rows_of_another_language(folder, multilingual):
    path = write_rows(folder / "rows.jsonl", *({"audio": f"{n}.wav", "text": n, "language": "de"} for n in "ab"))
    code, output = cli("evaluate", Path(__file__).parents[2] / "jetson/fixtures/bundle", "-d", path)
    assert code == 2
    assert "2 of 2 rows name another language (de 2), and the model writes en only" in output
    export = ["export", "--target", "cpu", "-o", folder / "bundle", "--window-s", 3, "-d", path]
    code, output = cli(*export, multilingual, "--language", "tr")
    assert code == 2
    assert "2 of 2 rows name another language (de 2), and --language is tr" in output
    code, output = cli(*export, model_dir())
    assert code == 2
    assert "the model writes en only" in output
    some = write_rows(folder / "some.jsonl", *({"audio": f"{n}.wav", "text": n, "language": n} for n in ("de", "en")))
    for n in ("de", "en"):
        shutil.copy(folder / "a.wav", folder / f"{n}.wav")
    code, output = cli("evaluate", Path(__file__).parents[2] / "jetson/fixtures/bundle", "-d", some)
    assert code == 0, output
    assert "1 of 2 rows name another language" in output


def test_names_of_languages_are_not_compared_with_codes(folder):
    """Without a model nobody knows which code a name has."""
    path = write_rows(folder / "rows.jsonl", {"audio": "a.wav", "text": "a", "language": "German"})
    code, output = cli("data", "check", path, "--language", "de")
    assert code == 0, output
    assert "another language" not in output


def test_the_limit_of_tokens_follows_from_the_data(folder, multilingual):
    """Scripts that need 40 tokens a second are not cut at English's rate: neither untrained nor after training."""
    from edgeqlora.models.family import load_learner

    decoder = load_learner(str(multilingual)).decoder([6.0], "ka", None)
    assert decoder.rules["max_new_tokens"] == {"6.0": 444}, "all positions of the model behind the prompt"
    english = load_learner(str(model_dir())).decoder([2.0], None, None)
    assert english.rules["max_new_tokens"] == {"2.0": 60}
    faster = load_learner(str(model_dir())).decoder([2.0], None, None, tokens_per_s=30.0)
    assert faster.rules["max_new_tokens"] == {"2.0": 92}
