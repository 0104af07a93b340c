"""The shipped model loads as any Whisper folder does, and does on a clip what the demo's promise rests on."""

import json

import pytest

from edgeqlora.demo import model_dir, speech_dir
from edgeqlora.demo.phrases import COMMON_WORDS, PHRASES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model():
    return transformers.WhisperForConditionalGeneration.from_pretrained(model_dir(), dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=["WhisperTokenizer", "AutoTokenizer"])
def tokenizer(request):
    return getattr(transformers, request.param).from_pretrained(model_dir())


def test_the_model_has_whispers_positions_and_a_small_body(model):
    assert model.config.max_source_positions == 1500
    assert model.config.max_target_positions == 448
    assert model.config.num_mel_bins == 80
    assert model.config.d_model // model.config.encoder_attention_heads in (32, 64)
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_000_000


def test_the_encoder_positions_are_whispers_sinusoids(model):
    untrained = transformers.WhisperForConditionalGeneration(model.config)
    name = "model.encoder.embed_positions.weight"
    torch.testing.assert_close(model.state_dict()[name], untrained.state_dict()[name], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["whisper", "wav2vec2"])
def test_weights_are_stored_as_fp16_safetensors_and_nothing_is_pickled(name):
    from safetensors import safe_open

    with safe_open(model_dir(name) / "model.safetensors", framework="pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}  # noqa: SIM118
    assert not [path for path in model_dir(name).iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


def test_the_tokenizer_prompts_as_english_whisper_does(model, tokenizer):
    generation = model.generation_config
    start, no_timestamps, *text_ids, eos = tokenizer(" turn on the lamp").input_ids
    assert start == generation.decoder_start_token_id == tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    assert no_timestamps == generation.no_timestamps_token_id
    assert eos == generation.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode(text_ids) == " turn on the lamp"
    assert len(tokenizer) == model.config.vocab_size


@pytest.mark.parametrize("text", [" Zoë said: 42 % of 3.5 km!", " 日本語", "\tno space", " naïve 🤖"])
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_a_phrase_is_a_handful_of_tokens(tokenizer):
    lengths = [len(tokenizer(f" {text}", add_special_tokens=False).input_ids) for text in PHRASES]
    assert max(lengths) <= 12
    assert all(len(tokenizer(f" {word}", add_special_tokens=False).input_ids) <= 8 for word in COMMON_WORDS)


def test_the_feature_extractor_is_whispers():
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(model_dir())
    assert (extractor.sampling_rate, extractor.feature_size, extractor.n_fft, extractor.hop_length) == (
        16000,
        80,
        400,
        160,
    )


def test_the_model_generates_text_from_a_shipped_clip(model):
    import soundfile

    tokenizer = transformers.WhisperTokenizer.from_pretrained(model_dir())
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(model_dir())
    row = json.loads((speech_dir() / "test.jsonl").read_text(encoding="utf-8").splitlines()[0])
    audio, _ = soundfile.read(speech_dir() / row["audio"], dtype="float32")
    mel = extractor(audio, sampling_rate=16000, return_tensors="pt").input_features
    with torch.inference_mode():
        tokens = model.generate(input_features=mel, max_new_tokens=8, num_beams=1, do_sample=False)
    text = tokenizer.batch_decode(tokens, skip_special_tokens=True)[0]
    assert "<|" not in text


def test_the_card_tells_how_the_model_was_made():
    card = json.loads((model_dir() / "card.json").read_text(encoding="utf-8"))
    assert card["schema"] == "edgeqlora.pretrain/1"
    assert card["heldout_wer"] <= 0.05
    assert card["recipe"]["seed"] == 7


def test_the_ctc_model_is_small_and_its_card_tells_how_it_was_made():
    card = json.loads((model_dir("wav2vec2") / "card.json").read_text(encoding="utf-8"))
    assert (card["schema"], card["recipe"]["steps"]) == ("edgeqlora.pretrain/1", 1200)
    assert (model_dir("wav2vec2") / "model.safetensors").stat().st_size <= 3_000_000
