"""The demo can be made again: voices, noises, texts and the pre-training itself, on a handful of clips."""

import json
import shutil

import numpy as np
import pytest

from edgeqlora.demo import acoustics, make_speech, phrases, synthesise, voices
from edgeqlora.errors import UserError

RATE = 16000
needs_espeak = pytest.mark.skipif(
    shutil.which("espeak-ng") is None, reason="needs espeak-ng: sudo apt-get install espeak-ng"
)
needs_both = pytest.mark.skipif(
    not all(map(shutil.which, synthesise.PROGRAMS)),
    reason="needs espeak-ng and flite: sudo apt-get install espeak-ng flite",
)


def rms(audio):
    return float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))


@needs_espeak
@pytest.mark.parametrize("text", ["seven", "turn on the kitchen light"])
def test_espeak_says_a_phrase(text):
    audio = synthesise.synthesise(voices.HELDOUT_VOICES[0], text)
    assert audio.dtype == np.float32
    assert 0.2 * RATE < audio.size < 2.5 * RATE
    assert 0.02 < np.abs(audio).max() <= 1.1


@needs_espeak
def test_a_faster_manner_is_shorter():
    voice = voices.HELDOUT_VOICES[0]
    slow, fast = (synthesise.synthesise(voice, "open the window", synthesise.Manner(rate)) for rate in (0.8, 1.3))
    assert fast.size < 0.8 * slow.size


@needs_both
def test_the_demo_speech_is_the_same_however_many_workers_make_it(tmp_path, monkeypatch):
    monkeypatch.setattr(make_speech, "BEDS_PER_KIND", 1)  # making the beds of noise is most of the time
    for workers in (1, 2):
        make_speech.make_demo(tmp_path / str(workers), workers=workers, n_clips=3)
    one, two = (tmp_path / "1", tmp_path / "2")
    for split in ("train", "dev", "test"):
        assert (one / f"{split}.jsonl").read_text() == (two / f"{split}.jsonl").read_text()
    assert sorted(path.stem for path in (one / "noise").iterdir()) == ["babble", "clatter", "fan", "pink"]


@needs_both
def test_the_manifest_says_what_was_drawn(tmp_path, capsys):
    assert make_speech.main([str(tmp_path), "--part", "pretrain", "--limit", "2"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "pretrain/train.jsonl").read_text().splitlines()]
    assert [row["speaker"] for row in rows] == [voice.speaker for voice in voices.PRETRAIN_VOICES[:2]]
    assert "next: python -m edgeqlora.demo.pretrain" in capsys.readouterr().out


def test_missing_programs_are_named_with_the_line_that_installs_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(synthesise.shutil, "which", lambda program: None)
    assert make_speech.main([str(tmp_path / "out")]) == 2
    assert "sudo apt-get install espeak-ng flite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_text_is_never_read_as_an_option(tmp_path):
    arguments = synthesise.command_line(voices.espeak("en-us", "m1"), "--help", synthesise.Manner(), tmp_path / "a.wav")
    assert arguments[-2:] == ["--", "--help"]


def test_an_unknown_engine_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="engine='festival' is not one of espeak-ng, flite"):
        synthesise.command_line(voices.Voice("festival", "kal", "kal"), "one", synthesise.Manner(), tmp_path / "a.wav")


@pytest.mark.parametrize("kind", sorted(acoustics.NOISES))
def test_noise_has_unit_rms_and_follows_its_seed(kind):
    first, again = (acoustics.NOISES[kind](np.random.default_rng(5), RATE) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert rms(first) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("exponent", "per_octave_db"), [(0.0, 0.0), (1.0, -3.01), (2.0, -6.02)])
def test_coloured_noise_falls_by_its_slope(exponent, per_octave_db):
    audio = acoustics.coloured_noise(np.random.default_rng(1), 8 * RATE, exponent)
    power = np.abs(np.fft.rfft(audio)) ** 2
    octaves = [10 * np.log10(power[8 * low : 16 * low].mean()) for low in (250, 500, 1000, 2000)]
    assert np.diff(octaves).mean() == pytest.approx(per_octave_db, abs=0.4)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 12.0])
def test_noise_is_mixed_at_the_drawn_snr(snr_db):
    rng = np.random.default_rng(3)
    speech, noise = 0.1 * rng.standard_normal(RATE), rng.standard_normal(RATE)
    mixed = acoustics.mix_at_snr(speech, noise, snr_db)
    assert 20 * np.log10(rms(speech) / rms(mixed - speech)) == pytest.approx(snr_db, abs=0.01)


def test_a_room_keeps_length_and_direct_sound():
    click = np.zeros(RATE, np.float32)
    click[100] = 1.0
    heard = acoustics.reverberate(np.random.default_rng(2), click, rt60_s=0.3, wet=0.5)
    assert heard.shape == click.shape
    assert np.abs(heard[:100]).max() < 1e-5
    assert heard[100] == pytest.approx(1.0, abs=0.1)
    assert rms(heard[101:4901]) > 10 * rms(heard[8000:])


def test_silence_is_trimmed_to_ten_milliseconds():
    audio = np.concatenate([np.zeros(1000), np.full(800, 0.5), np.zeros(2000)]).astype(np.float32)
    assert synthesise.trim_silence(audio).size == 160 + 800 - 1 + 160
    assert synthesise.trim_silence(np.zeros(500, np.float32)).size == 0


def test_random_texts_are_phrases_or_words_in_no_order():
    rng = np.random.default_rng(0)
    texts = [phrases.draw_text(rng, ("red", "blue"), phrase_share=0.5, max_words=3) for _ in range(400)]
    said = [text for text in texts if text in phrases.PHRASES]
    assert 150 < len(said) < 250
    assert {len(text.split()) for text in texts if text not in said} == {1, 2, 3}


def test_learning_rate_warms_up_and_falls():
    from edgeqlora.demo.pretrain import Recipe, lr_share

    recipe = Recipe(steps=110, warmup_steps=10)
    assert lr_share(0, recipe) == pytest.approx(0.1)
    assert lr_share(10, recipe) == pytest.approx(1.0)
    assert lr_share(60, recipe) == pytest.approx(0.51)
    assert lr_share(110, recipe) == pytest.approx(0.02)


def test_every_epoch_of_batches_sees_every_utterance_once_beside_its_like():
    from edgeqlora.demo.pretrain_batches import Utterance, bucketed_batches

    utterances = [
        Utterance(path, "", duration_s) for path, duration_s in zip("abcdef", (3, 1, 2, 2, 1, 3), strict=True)
    ]
    batches = list(bucketed_batches(utterances, 2, 6, seed=0))
    for epoch in (batches[:3], batches[3:]):
        assert sorted(one.path for batch in epoch for one in batch) == list("abcdef")
        assert all(batch[0].duration_s == batch[1].duration_s for batch in epoch)
    assert batches[:3] != batches[3:]


def test_a_faster_tape_is_shorter_and_higher():
    from edgeqlora.demo.perturb import change_speed

    tone = np.sin(2 * np.pi * 400 * np.arange(RATE) / RATE).astype(np.float32)
    faster = change_speed(tone, 1.25)
    assert faster.size == 12800
    assert np.abs(np.fft.rfft(faster)).argmax() * RATE / faster.size == pytest.approx(500, abs=2)


def test_perturbed_speech_keeps_its_level_within_the_equaliser():
    from edgeqlora.demo.perturb import EQUALISER_DB, perturb

    speech = 0.1 * acoustics.pink(np.random.default_rng(0), RATE)
    for seed in range(8):
        changed = perturb(np.random.default_rng(seed), speech)
        assert changed.dtype == np.float32
        assert abs(20 * np.log10(rms(changed) / 0.1)) <= EQUALISER_DB + 2
        assert RATE / 1.16 < changed.size < RATE / 0.86


def test_pretraining_without_speech_says_how_to_make_it(tmp_path, capsys):
    from edgeqlora.demo import pretrain

    assert pretrain.main(["--speech", str(tmp_path), "--out", str(tmp_path / "model")]) == 2
    assert "make_speech OUT --part pretrain" in capsys.readouterr().err


def test_two_steps_of_pretraining_write_a_model_that_loads(tmp_path):
    """Noise stands in for speech: this is about the machinery, and runs where no espeak-ng is installed."""
    import soundfile
    from transformers import WhisperForConditionalGeneration, WhisperTokenizer

    from edgeqlora.demo.pretrain import Recipe, pretrain

    rng = np.random.default_rng(0)
    rows = []
    for index in range(4):
        soundfile.write(tmp_path / f"{index}.wav", 0.1 * rng.standard_normal(RATE), RATE)
        rows.append(json.dumps({"audio": f"{index}.wav", "text": phrases.PHRASES[index], "duration": 1.0}))
    for name in ("train", "heldout"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    tiny = Recipe(d_model=64, n_heads=2, encoder_layers=1, decoder_layers=1)
    recipe = tiny._replace(steps=2, batch_size=4, warmup_steps=1, window_s=1.0)
    card = pretrain(tmp_path, tmp_path / "model", recipe)
    assert card["n_utterances"] == 4
    model = WhisperForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert model.config.max_source_positions == 1500
    assert WhisperTokenizer.from_pretrained(tmp_path / "model").decode([300]) != ""
