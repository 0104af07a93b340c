"""Wav2Vec2 CTC behind the seam: features, labels, loss and texts are transformers' own, and the whole line runs on it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from edgeqlora.cli.main import app
from edgeqlora.demo import model_dir, speech_dir
from edgeqlora.errors import UserError
from edgeqlora.lora.adapters import adapted_linears
from edgeqlora.models.family import check_source, families, load_learner, load_processor
from edgeqlora_jetson.decoders import collapse, spell


@pytest.fixture(scope="session")
def tiny_ctc(tmp_path_factory) -> Path:
    """Folder of a random Wav2Vec2ForCTC (32 wide, 2 layers, 4 convolutions) with lower-case letters."""
    import torch

    from edgeqlora.demo.pretrain_ctc import Recipe, build_model, build_tokenizer
    from edgeqlora.models.wav2vec2.processor import Wav2Vec2Processor

    folder = tmp_path_factory.mktemp("tiny-ctc")
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(Recipe(channels=16, hidden=64, layers=2, heads=2), len(tokenizer))
    from transformers import Wav2Vec2FeatureExtractor

    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    model.save_pretrained(folder)
    Wav2Vec2Processor("tiny", tokenizer, extractor, model.config).save(folder)
    return folder


def noise(n_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, n_samples).astype(np.float32) + 0.1


def test_both_families_are_found():
    assert families() == ["wav2vec2", "whisper"]


def test_another_family_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="holds a 'bert' model, allowed is model_type wav2vec2 or whisper"):
        check_source(str(tmp_path))


def test_features_are_those_of_transformers(tiny_ctc):
    from transformers import Wav2Vec2FeatureExtractor

    processor = load_processor(str(tiny_ctc))
    audio = [noise(5000), noise(16000, 1)]
    own = Wav2Vec2FeatureExtractor.from_pretrained(tiny_ctc)(
        audio, sampling_rate=16000, padding="max_length", max_length=16000, return_tensors="np"
    )
    ours = np.stack([processor.features(clip, 1.0) for clip in audio])
    np.testing.assert_allclose(ours, own["input_values"], atol=2e-6)
    assert [processor.n_valid_frames(clip.size, 1.0) for clip in audio] == own["attention_mask"].sum(1).tolist()
    assert not processor.features(np.zeros(50, np.float32), 1.0).any()
    assert processor.features(noise(99999), 1.0).shape == (16000,)


@pytest.mark.parametrize("window_s", [0.0, 0.01, 1.03, 31.0])
def test_windows_out_of_range(tiny_ctc, window_s):
    with pytest.raises(UserError, match=r"allowed are multiples of 0.02 s up to 30 s"):
        load_processor(str(tiny_ctc)).feature_shape(window_s)


def test_text_is_spelled_in_the_case_and_the_characters_of_the_vocabulary(tiny_ctc):
    processor = load_processor(str(tiny_ctc))
    a = processor.vocabulary.ids["a"]
    assert processor.text_ids("  A, a! ") == [a, processor.vocabulary.ids["|"], a]
    # A typographic apostrophe is the plain one; a letter that is missing is the unknown token, and is named.
    assert processor.text_ids("a\u2019a") == [a, processor.vocabulary.ids["'"], a]
    assert processor.text_ids("ä") == [processor.vocabulary.unknown_id]
    assert processor.unwritable("Straße 7, a") == {"ß", "7"}


def test_labels_split_where_scoring_splits(tiny_ctc):
    """A hyphen, a dash or a slash stands between words; a sign that is spoken cannot be written; Turkish keeps its i."""
    from edgeqlora_jetson.text import normalise_unicode

    processor = load_processor(str(tiny_ctc))
    words = processor.vocabulary
    for text in ("the well-known half-open door", "AND/OR", "stop — now", "don't! \u201cwait\u201d"):
        written = spell(processor.text_ids(text), words.characters, words.delimiter)
        assert normalise_unicode(written) == normalise_unicode(text), text
    assert processor.unwritable("five \u20ac and a+b") == {"\u20ac", "+"}
    assert processor.unwritable("\u0130stanbul") == set()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("letters", [["\u00e9"], ["e", "\u0301"], ["\u0958"], ["\u0915", "\u093c"]])
def test_the_vocabulary_decides_how_accents_are_written(tiny_ctc, tmp_path, letters, form):
    """Composed letters, accents as tokens of their own, and letters that Unicode never composes."""
    import unicodedata

    shutil.copytree(tiny_ctc, tmp_path / "model")
    path = tmp_path / "model" / "vocab.json"
    vocabulary = json.loads(path.read_text())
    plain = [token for token in vocabulary if len(token) == 1 and token.isalpha()]
    for old, new in zip(reversed(plain), (letter for letter in letters if letter not in vocabulary), strict=False):
        vocabulary[new] = vocabulary.pop(old)
    path.write_text(json.dumps(vocabulary))
    processor = load_processor(str(tmp_path / "model"))
    text = unicodedata.normalize(form, "".join(letters))
    assert processor.unwritable(text) == set()
    assert processor.text_ids(text) == [vocabulary[letter] for letter in letters]


def broken(model: Path, folder: Path, vocabulary=None, **tokenizer) -> Path:
    """A copy of a model with another vocab.json or tokenizer_config.json."""
    shutil.copytree(model, folder)
    if vocabulary is not None:
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / "tokenizer.json").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **tokenizer}))
    return folder


@pytest.mark.parametrize("command", ["evaluate", "export", "train"])
@pytest.mark.parametrize("case", ["no blank", "beyond the head"])
def test_a_vocabulary_that_does_not_belong_is_refused_by_every_command(tiny_ctc, clips, tmp_path, command, case):
    ids = json.loads((tiny_ctc / "vocab.json").read_text())
    vocabulary, tokenizer, message = {
        "no blank": (None, {"pad_token": None}, r"needs a padding token \(the blank of CTC, found None\)"),
        "beyond the head": ({**ids, "\u00e9": len(ids)}, {}, f"head writes {len(ids)} ids, .*'\u00e9' beyond them"),
    }[case]
    model = broken(tiny_ctc, tmp_path / "model", vocabulary, **tokenizer)
    result = run(
        *{
            "evaluate": ["evaluate", model, "-d", clips, "--window-s", 1],
            "export": ["export", model, "-d", clips, "--window-s", 1, "-o", tmp_path / "out"],
            "train": train_arguments(model, clips, tmp_path / "out"),
        }[command]
    )
    with pytest.raises(UserError, match=message):
        raise result.exception
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_without_its_delimiter(tiny_ctc):
    """transformers gives "|" for the delimiter whatever tokenizer_config.json says (5.24): it may not be there."""
    from edgeqlora_export.wav2vec2.checks import read_vocabulary

    processor = load_processor(str(tiny_ctc))
    ids = {"<sp>" if token == "|" else token: n for token, n in processor.tokenizer.get_vocab().items()}
    tokenizer = SimpleNamespace(
        word_delimiter_token="|", all_special_tokens=["<pad>"], pad_token="<pad>", get_vocab=lambda: ids
    )
    config = SimpleNamespace(vocab_size=len(ids), add_adapter=False)
    with pytest.raises(UserError, match=r"its word delimiter '\|' in vocab.json"):
        read_vocabulary("here", tokenizer, processor.feature_extractor, config)
    rate = SimpleNamespace(sampling_rate=8000)
    with pytest.raises(
        UserError, match="feature extractor works at 8000 Hz, allowed is 16000 Hz: choose another model"
    ):
        read_vocabulary("here", tokenizer, rate, config)
    config.add_adapter = True
    with pytest.raises(UserError, match="add_adapter=True, allowed is False"):
        read_vocabulary("here", tokenizer, processor.feature_extractor, config)


def test_a_head_wider_than_the_vocabulary_and_special_tokens_behind_it_are_right(tiny_ctc, clips, tmp_path):
    """As in the fine-tuning guides: vocab.json without <s> and </s>, which transformers adds behind it."""
    ids = json.loads((tiny_ctc / "vocab.json").read_text())
    short = {token: n for n, token in enumerate(t for t in ids if t not in ("<s>", "</s>"))}
    config = json.loads((tiny_ctc / "config.json").read_text())
    assert config["vocab_size"] == len(short) + 2
    model = broken(tiny_ctc, tmp_path / "model", {k: v for k, v in short.items() if k not in "xyz"})
    for arguments in (["evaluate", model], ["export", model, "-o", tmp_path / "out"]):
        result = run(*arguments, "-d", clips, "--window-s", 1)
        assert result.exit_code == 0, result.output


def test_a_loud_click_in_a_quiet_clip_passes_the_gate(tiny_ctc, tmp_path):
    import soundfile

    audio = np.random.default_rng(0).normal(0, 0.003, 96000).astype(np.float32)
    audio[5000:5004] = 0.95
    soundfile.write(tmp_path / "click.wav", audio, 16000)
    (tmp_path / "rows.jsonl").write_text('{"audio": "click.wav", "text": "stop"}\n')
    result = run("export", tiny_ctc, "-d", tmp_path / "rows.jsonl", "--window-s", 6, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output


def test_steps_are_counted_as_the_model_counts_them(tiny_ctc):
    learner = load_learner(str(tiny_ctc))
    for n_samples in (0, 100, 400, 719, 720, 16000, 31999):
        expected = max(0, int(learner.model._get_feat_extract_output_lengths(n_samples)))
        assert learner.processor.n_outputs(n_samples) == expected, n_samples


def test_a_repeated_character_needs_a_blank_between(tiny_ctc):
    processor = load_processor(str(tiny_ctc))
    seconds = next(n for n in range(16000) if processor.n_outputs(n) == 4) / 16000
    assert processor.fits(processor.text_ids("abcd"), seconds)
    assert processor.fits(processor.text_ids("abb"), seconds)
    assert not processor.fits(processor.text_ids("aabb"), seconds)
    assert not processor.fits([processor.vocabulary.unknown_id], 10.0)


def test_collapse_by_hand():
    assert collapse([0, 3, 3, 0, 3, 4, 4, 0], 0) == [3, 3, 4]
    assert collapse([], 0) == []
    assert spell([1, 2, 0, 2, 2, 1], [None, "a", "|"], "|") == "a a"


def test_words_come_back_as_words(tiny_ctc):
    """The tokenizer of transformers counts its word delimiter among the special tokens, which are not written."""
    processor = load_processor(str(tiny_ctc))
    words = processor.vocabulary
    assert spell(processor.text_ids("lights on"), words.characters, words.delimiter) == "lights on"
    assert words.characters[words.blank_id] is None


def test_loss_is_that_of_transformers(tiny_ctc):
    import torch

    learner = load_learner(str(tiny_ctc))
    learner.model.eval()
    processor, decoder = learner.processor, learner.decoder([1.0], None, None)
    texts, audio = ["lights on", "stop"], [noise(16000), noise(9000, 1)]
    inputs = decoder.collate(
        [
            {"features": processor.features(a, 1.0), "n_valid": a.size, "target_ids": processor.text_ids(t)}
            for a, t in zip(audio, texts, strict=True)
        ]
    )
    learner.model.config.ctc_loss_reduction = "sum"
    with torch.no_grad():
        own = learner.model(**inputs)
        labels = inputs.pop("labels")
        ours = learner.loss(learner.model(**inputs), inputs, labels)
    assert float(ours) == pytest.approx(float(own.loss), rel=1e-5)


def test_a_batch_gives_the_texts_of_its_clips_alone(tiny_ctc):
    learner = load_learner(str(tiny_ctc))
    learner.model.eval()
    decoder, processor = learner.decoder([1.0, 2.0], None, None), learner.processor
    audio = [noise(16000), noise(7000, 1), noise(12000, 2)]

    def texts(clips, window_s):
        features = np.stack([processor.features(clip, window_s) for clip in clips])
        return [t.text for t in decoder.transcribe(features, [clip.size for clip in clips], window_s)]

    together = texts(audio, 1.0)
    assert together == [texts([clip], 1.0)[0] for clip in audio]
    assert together == texts(audio, 2.0), "the mask hides the padding, so the window changes nothing"
    assert any(together), "a random model says something"


def test_every_linear_of_a_layer_gets_an_adapter(tiny_ctc):
    groups = adapted_linears(load_learner(str(tiny_ctc)))
    names = [name.removeprefix("wav2vec2.encoder.layers.0.") for name in groups["lower"] if ".layers.0." in name]
    assert sorted(names) == [
        "attention.k_proj",
        "attention.out_proj",
        "attention.q_proj",
        "attention.v_proj",
        "feed_forward.intermediate_dense",
        "feed_forward.output_dense",
    ]
    assert (len(groups["lower"]), len(groups["upper"])) == (6, 6)


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def train_arguments(model: Path, clips: Path, output: Path, *more: object) -> list[object]:
    data = [
        "--train",
        clips,
        "--dev",
        clips.with_name("dev.jsonl"),
        "--steps",
        4,
        "--batch-size",
        4,
        "--eval-every",
        2,
        "--cache",
        "none",
    ]
    return ["train", "-m", model, "-o", output, *data, "--window-s", "1", *more]


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_the_line_from_training_to_evaluation(tiny_ctc, clips, tmp_path, method):
    ready = run(*train_arguments(tiny_ctc, clips, tmp_path / "out", "--method", method, "--speed-perturb", "0.9,1.1"))
    assert ready.exit_code == 0, ready.output
    model = tmp_path / "out"
    if method == "qlora":
        ranks = json.loads((model / "ranks.json").read_text())["rank_pattern"]
        assert len(ranks) == 12
        merged = run("merge", model, "-o", tmp_path / "merged")
        assert merged.exit_code == 0, merged.output
        model = tmp_path / "merged"
    scored = run("evaluate", model, "-d", clips, "-o", tmp_path / "report.json")
    assert scored.exit_code == 0, scored.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["decoding"]["blank_id"] == 0
    assert report["wer"]["basic-unicode"]["n_reference"] == 12
    assert report["perplexity"]["value"] > 1
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["dev_wer"]["value"] is not None


def write_rows(clips: Path, path: Path, text: str) -> Path:
    """The manifest with another text in its first row, and dev.jsonl beside it."""
    if clips.name != "dev.jsonl":
        dev = clips.with_name("dev.jsonl")
        write_rows(dev, path.with_name("dev.jsonl"), json.loads(dev.read_text().splitlines()[0])["text"])
    rows = [json.loads(line) for line in clips.read_text().splitlines()]
    rows[0]["text"] = text
    for row in rows:
        row["audio"] = str(clips.parent / row["audio"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("7 lights", [], "cannot write: '7', e.g. in .*write them out"),
        ("a very long text that nobody can say in less than half a second", [], "1 of 8 clips are too short for their"),
        ("stop", ["--spec-augment"], "spec_augment works on the log-mel, and this model reads samples"),
        ("stop", ["--task", "translate"], "task='translate' cannot be asked of a CTC model"),
        ("stop", ["--window-s", "31"], "longer than the model's own 30 s|allowed"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(tiny_ctc, clips, tmp_path, text, flags, message):
    data = write_rows(clips, tmp_path / "rows.jsonl", text)
    result = run(*train_arguments(tiny_ctc, data, tmp_path / "out", *flags))
    assert result.exit_code != 0
    with pytest.raises(UserError, match=message):
        raise result.exception
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev.jsonl", "rows.jsonl"]


def test_data_check_counts_what_cannot_be_written(tiny_ctc, clips, tmp_path):
    data = write_rows(clips, tmp_path / "rows.jsonl", "7 lights")
    result = run("data", "check", data, "-m", tiny_ctc)
    assert result.exit_code == 1
    assert "ERROR    1 x text with characters that the model cannot write" in result.output
    assert "'7': 7 lights" in result.output
    data = write_rows(clips, tmp_path / "long.jsonl", "a very long text that nobody can say in less than half a second")
    result = run("data", "check", data, "-m", tiny_ctc)
    assert result.exit_code == 1
    assert "1 x clip too short for its text" in result.output


def test_the_embedded_model_goes_the_whole_line(tmp_path):
    """Train, merge, export, bench as a user types it; the bundle says what torch says, and both hear something."""
    model, speech = model_dir("wav2vec2"), speech_dir()
    test = ["-d", speech / "test.jsonl"]
    data = ["--train", speech / "train.jsonl", "--dev", speech / "dev.jsonl", "--eval-samples", 8]
    adapter, merged, bundle = (tmp_path / name for name in ("adapter", "merged", "bundle"))
    steps = ["--steps", 4, "--batch-size", 8, "--eval-every", 4, "--cache", "none", "--window-s", 3]
    windows = ["--window-s", "2,3", "--target", "jetson-nano", "--eval-clips", 16]
    for command in (
        ["train", "-m", model, "-o", adapter, *data, *steps],
        ["merge", adapter, "-o", merged],
        ["export", merged, "-o", bundle, *test, *windows],
    ):
        result = run(*command)
        assert result.exit_code == 0, result.output
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert (manifest["features"], manifest["decoder"]["kind"]) == ({"kind": "waveform", "normalise": True}, "ctc")
    assert [gate["name"] for gate in manifest["gates"]] == [
        "samples", "logits at 2 s", "greedy tokens at 2 s", "texts at 2 s",
        "logits at 3 s", "greedy tokens at 3 s", "texts at 3 s",
    ]  # fmt: skip
    profiles = manifest["engine_request"]["graphs"]["ctc"]["optimization_profiles"]
    assert [(p["name"], p["inputs"]["audio"]["max"]) for p in profiles] == [
        ("window 2 s", [4, 32000]),
        ("window 3 s", [4, 48000]),
    ]
    texts = []
    for source in (merged, bundle):
        scored = run("evaluate", source, *test, "--limit", 16, "-o", tmp_path / "report.json")
        assert scored.exit_code == 0, scored.output
        rows = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
        texts.append([row["hypothesis"] for row in rows])
    assert texts[0] == texts[1]
    assert json.loads((tmp_path / "report.json").read_text())["wer"]["basic-unicode"]["value"] < 75
    refused = run("evaluate", bundle, *test, "--language", "de", "--window-s", "3")
    with pytest.raises(UserError, match="--window-s, --language: fixed in a bundle by its export"):
        raise refused.exception
    runner = [sys.executable, bundle / "edgeqlora-jetson.pyz"]
    bench = subprocess.run([*runner, "bench", "--output", tmp_path / "bench.json"], capture_output=True, text=True)
    assert bench.returncode == 0, bench.stdout + bench.stderr
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["accuracy"]["basic-unicode"]["wer"]["value"] < 75
    assert set(report["latency_ms"]) == {"query", "waiting", "total", "features", "ctc", "collapse"}
    assert "  collapse" in bench.stdout


def test_rooms_and_noise_reach_the_training(tiny_ctc, clips, tmp_path):
    """The clips are heard through an impulse response: another loss than without, and a folder of none is refused."""
    import soundfile

    (tmp_path / "rooms").mkdir()
    result = run(*train_arguments(tiny_ctc, clips, tmp_path / "none", "--room", tmp_path / "rooms"))
    with pytest.raises(UserError, match=r"room='.*rooms': no wav, flac, ogg or mp3 file in this folder"):
        raise result.exception
    response = np.exp(-np.arange(4000) / 800) * noise(4000, 5)
    soundfile.write(tmp_path / "rooms" / "hall.wav", response, 16000)
    losses = []
    for name, flags in (("dry", []), ("wet", ["--room", tmp_path / "rooms", "--room-probability", "1"])):
        result = run(*train_arguments(tiny_ctc, clips, tmp_path / name, *flags))
        assert result.exit_code == 0, result.output
        rows = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert losses[0]
    assert losses[0] != losses[1]


def test_a_stream_is_refused_by_a_decoder_of_whole_clips(tiny_ctc):
    learner = load_learner(str(tiny_ctc))
    features = learner.processor.features(noise(8000), 1.0)[np.newaxis]
    with pytest.raises(UserError, match="takes whole clips: give states=None"):
        learner.decoder([1.0], None, None).transcribe(features, [8000], 1.0, states=[None])


def test_logits_that_are_no_numbers_are_not_believed(tiny_ctc):
    import torch

    learner = load_learner(str(tiny_ctc))
    with torch.no_grad():
        learner.model.lm_head.bias[3] = torch.nan
    features = learner.processor.features(noise(16000), 1.0)[np.newaxis]
    with pytest.raises(UserError, match="the model in float32 answers NaN or infinity on this audio"):
        learner.decoder([1.0], None, None).transcribe(features, [16000], 1.0)
