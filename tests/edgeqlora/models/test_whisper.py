"""Whisper: log-mels equal the extractor's own, labels hold prompt, text and end in the places the model expects."""

import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from transformers import WhisperFeatureExtractor

from edgeqlora.data.cache import FeatureCache
from edgeqlora.data.row import Row
from edgeqlora.demo import model_dir
from edgeqlora.errors import UserError
from edgeqlora.models.family import load_processor
from edgeqlora.models.whisper.learner import collate
from edgeqlora.models.whisper.processor import WhisperProcessor


def processor(feature_extractor) -> WhisperProcessor:
    """A processor around an extractor, with the sizes of whisper-tiny.en."""
    config = SimpleNamespace(max_source_positions=1500, vocab_size=51864, max_target_positions=448, num_mel_bins=80)
    tokenizer = SimpleNamespace(eos_token_id=50256, get_vocab=dict)
    return WhisperProcessor("tiny", tokenizer, feature_extractor, config, SimpleNamespace(eos_token_id=50256))


@pytest.fixture(scope="module")
def extractor() -> WhisperProcessor:
    return processor(WhisperFeatureExtractor(feature_size=80))


def noise(n_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, n_samples).astype(np.float32)


def test_native_window_is_the_extractors_own_output(extractor):
    audio = noise(40000)
    own = WhisperFeatureExtractor(feature_size=80)(audio, sampling_rate=16000, return_tensors="np")
    np.testing.assert_array_equal(extractor.features(audio, 30.0), own["input_features"][0])


@pytest.mark.parametrize("window_s", [0.02, 1.0, 2.0, 3.6])
def test_window_pads_or_cuts(extractor, window_s):
    n_samples = round(16000 * window_s)
    audio = noise(20000)
    mel = extractor.features(audio, window_s)
    assert mel.shape == (80, round(100 * window_s))
    assert mel.dtype == np.float32
    exactly = np.pad(audio, (0, max(0, n_samples - audio.size)))[:n_samples]
    np.testing.assert_array_equal(mel, extractor.features(exactly, window_s))


@pytest.mark.parametrize("window_s", [0.0, -2.0, 0.01, 2.01, 1.9999])
def test_window_must_be_an_even_number_of_frames(extractor, window_s):
    with pytest.raises(UserError, match=r"must be a multiple of 0.02 s, at least one: try \d"):
        extractor.features(noise(100), window_s)


def test_valid_frames_are_those_that_hold_samples(extractor):
    assert [extractor.n_valid_frames(n, 2.0) for n in (1, 160, 161, 32000, 99999)] == [1, 1, 2, 200, 200]


def test_threads_of_torch_are_left_as_they_were(extractor):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        extractor.features(noise(100), 1.0)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_labels_are_prompt_text_end():
    mel = np.zeros((80, 4), np.float32)
    batch = collate([{"features": mel, "target_ids": [7, 8, 0]}, {"features": mel, "target_ids": [9, 0]}], [1, 2], 0)
    assert batch["input_features"].shape == (2, 80, 4)
    assert batch["decoder_input_ids"].tolist() == [[1, 2, 7, 8], [1, 2, 9, 0]]
    # The prompt is given in decoding, so nothing is learnt there; the end of text is learnt once.
    assert batch["labels"].tolist() == [[-100, 7, 8, 0], [-100, 9, 0, -100]]


def is_written_as_it_is(model: WhisperProcessor, text: str) -> None:
    """Its ids are of no control token, and give the same text."""
    from edgeqlora_export.whisper.detokenizer import control_tokens, detokenizer_table
    from edgeqlora_jetson.decoders import Detokenizer

    ids = model.text_ids(text)
    assert not set(control_tokens(model.tokenizer).values()) & set(ids)
    assert Detokenizer(detokenizer_table(model.tokenizer, len(model.tokenizer)))(ids) == text


CONTROL_LIKE = ["stop <|endoftext|> now", "<|en|>go", "a<|startoftranscript|>", "<|<|en|>|>", "<|0.00|> <|xx|>"]


@pytest.mark.parametrize("text", CONTROL_LIKE)
def test_text_like_a_control_token_is_text(text):
    model = load_processor(str(model_dir()))
    assert isinstance(model, WhisperProcessor)
    model.tokenizer.add_tokens(["<|0.00|>"])  # a time stamp, which released tokenizers do not mark as special
    is_written_as_it_is(model, text)


def test_letters_are_composed():
    model = load_processor(str(model_dir()))
    for text in ("caf\u00e9 \u00e0 No\u00ebl", "\uc548\ub155 \ud558\uc138\uc694", "\u0110\u00e0 N\u1eb5ng"):
        assert model.text_ids(unicodedata.normalize("NFD", text)) == model.text_ids(text)


@pytest.mark.real
def test_real_text_like_a_control_token(shared):
    tiny = load_processor(str(shared / "models" / "whisper-tiny.en"))
    assert isinstance(tiny, WhisperProcessor)
    for text in CONTROL_LIKE:
        is_written_as_it_is(tiny, text)


@pytest.mark.real
def test_real_labels(shared):
    tiny = load_processor(str(shared / "models" / "whisper-tiny.en"))
    assert (tiny.n_prompt_ids, tiny.end_ids, tiny.native_window_s) == (2, [50256], 30.0)
    # As Whisper's own transcripts: the first word is the token that the base model knows from the middle of sentences.
    assert tiny.tokenizer.decode(tiny.text_ids("zero one")) == " zero one"
    assert tiny.tokenizer.decode(tiny.text_ids("こんにちは")) == "こんにちは"
    assert tiny.text_ids("  ") == []


@pytest.mark.real
def test_real_extractor(shared):
    own = WhisperFeatureExtractor.from_pretrained(shared / "models" / "whisper-tiny.en")
    row = Row(str(shared / "data/fsdd/audio/george/0_george_0.flac"), "zero")
    mel = FeatureCache(processor(own)).features(row, 2.0)
    assert mel.shape == (80, 200)
    # The log-mel of a window is that of 30 s, as long as the clip's loudest cell is in it.
    audio, _ = soundfile.read(row.audio, dtype="float32")
    whole = own(audio, sampling_rate=16000, return_tensors="np")["input_features"][0]
    np.testing.assert_allclose(mel, whole[:, :200], atol=1e-5)
