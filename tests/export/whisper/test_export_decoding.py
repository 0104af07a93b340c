"""Prompt, suppression and greedy decoding: one set of rules for torch and board."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from export_tiny import (
    DE,
    EN,
    EOS,
    HAW,
    NO_TIMESTAMPS,
    SOT,
    TRANSCRIBE,
    TRANSLATE,
    tiny_generation_config,
    tiny_whisper,
)

from edgeqlora_export.whisper.decoding import decoding_spec, max_new_tokens_of, torch_greedy
from edgeqlora_export.whisper.languages import is_multilingual
from edgeqlora_jetson.errors import NotFiniteError, UserError

MEL = np.random.default_rng(0).normal(0, 1, (4, 80, 200)).astype(np.float32)


def test_english_only_prompt_and_suppression(whisper, tokenizer):
    spec = decoding_spec(whisper, tokenizer, tiny_generation_config(), [0.5, 2])
    assert spec["prompt_ids"] == [SOT, NO_TIMESTAMPS]
    assert (spec["eos_ids"], spec["suppress_ids"], spec["begin_suppress_ids"]) == ([EOS], [3, SOT], [EOS])
    assert spec["max_new_tokens"] == {"0.5": 39, "2.0": 60}
    assert (spec["language"], spec["task"]) == ("en", "transcribe")


@pytest.mark.parametrize(
    ("language", "task", "prompt"),
    [
        ("de", None, [SOT, DE, TRANSCRIBE, NO_TIMESTAMPS]),
        ("English", "transcribe", [SOT, EN, TRANSCRIBE, NO_TIMESTAMPS]),
        ("haw", "translate", [SOT, HAW, TRANSLATE, NO_TIMESTAMPS]),
    ],
)
def test_multilingual_prompt_names_language_and_task(whisper, tokenizer, language, task, prompt):
    spec = decoding_spec(whisper, tokenizer, tiny_generation_config(is_multilingual=True), [2.0], language, task)
    assert spec["prompt_ids"] == prompt
    assert spec["max_new_tokens"] == {"2.0": 60}


def test_a_generation_config_without_suppression_and_with_two_end_tokens(whisper, tokenizer):
    bare = tiny_generation_config(suppress_tokens=None, begin_suppress_tokens=None, eos_token_id=[EOS, 1])
    spec = decoding_spec(whisper, tokenizer, bare, [2.0])
    assert (spec["suppress_ids"], spec["begin_suppress_ids"], spec["eos_ids"]) == ([], [], [EOS, 1])


@pytest.mark.parametrize(
    ("said", "forced", "tokens", "end", "expected"),
    [
        ({"is_multilingual": False}, None, ["de", "en"], 50257, False),
        ({"is_multilingual": True}, None, [], 50256, True),
        ({"lang_to_id": {"<|de|>": 1}}, None, [], 0, True),
        ({}, [[1, 0]], ["de", "en"], 50257, True),  # an old checkpoint that forces a language first
        ({}, [[1, 9]], ["de", "en"], 50257, False),  # or no timestamps
        ({}, None, ["de", "en"], 50257, True),
        ({}, None, ["en"], 50257, False),
        ({}, None, ["de", "en"], 50256, False),  # OpenAI's English-only tokenizer has all languages too
    ],
)
def test_multilingual_is_what_the_tokens_say_whatever_the_size(said, forced, tokens, end, expected):
    vocabulary = {f"<|{code}|>": i for i, code in enumerate(tokens)} | {"<|notimestamps|>": 9}
    tokenizer = SimpleNamespace(eos_token_id=end, get_vocab=lambda: vocabulary)
    for vocab_size in (300, 60_000):
        config = SimpleNamespace(vocab_size=vocab_size, forced_decoder_ids=forced)
        assert is_multilingual(config, SimpleNamespace(**said), tokenizer) is expected


def test_wrong_language_and_task_are_named_with_what_is_allowed(whisper, tokenizer):
    english, many = tiny_generation_config(), tiny_generation_config(is_multilingual=True)
    with pytest.raises(UserError, match="language='de' cannot be asked of an English-only model"):
        decoding_spec(whisper, tokenizer, english, [2.0], "de")
    with pytest.raises(UserError, match="task='translate' cannot be asked"):
        decoding_spec(whisper, tokenizer, english, [2.0], "en", "translate")
    with pytest.raises(UserError, match="language='xx' is not in the tokenizer: it knows de, en, haw"):
        decoding_spec(whisper, tokenizer, many, [2.0], "xx")
    with pytest.raises(UserError, match="language=None: a multilingual model needs one"):
        decoding_spec(whisper, tokenizer, many, [2.0])
    german = tiny_generation_config(is_multilingual=True, language="<|de|>")
    assert decoding_spec(whisper, tokenizer, german, [2.0])["language"] == "de"
    with pytest.raises(UserError, match="task='sing' is unknown"):
        decoding_spec(whisper, tokenizer, many, [2.0], "en", "sing")


def test_a_tokenizer_without_control_tokens_is_refused(whisper):
    class Plain:
        def get_vocab(self):
            return {"a": 0, "<|startoftranscript|>": 1}

    with pytest.raises(UserError, match=r"no <\|notimestamps\|>: these control tokens"):
        decoding_spec(whisper, Plain(), tiny_generation_config(), [2.0])


@pytest.mark.parametrize(
    ("window_s", "n_prompt", "tokens_per_s", "limit"),
    [
        (2.0, 2, 14.0, 60),
        (2.0, 2, 45.0, 122),  # a script of three tokens a letter
        (0.02, 2, 14.0, 33),
        (30.0, 4, 14.0, 444),  # the position table ends there
        (30.0, 4, 1000.0, 444),
        (2.0, 2, None, 446),  # no data tell: all positions
    ],
)
def test_the_token_budget_follows_the_data_and_ends_at_the_position_table(window_s, n_prompt, tokens_per_s, limit):
    assert max_new_tokens_of(window_s, n_prompt, 448, tokens_per_s) == limit


@pytest.mark.parametrize(
    ("language", "tokens_per_s", "limit"),
    [("en", None, 39), ("en", 1.0, 39), ("en", 30.0, 47), ("de", None, 60), ("de", 20.0, 42), ("de", 4.0, 39)],
)
def test_only_english_has_a_limit_without_data_and_none_has_a_lower_one(
    whisper, tokenizer, language, tokens_per_s, limit
):
    generation_config = tiny_generation_config(is_multilingual=True)
    spec = decoding_spec(whisper, tokenizer, generation_config, [0.5], language, None, tokens_per_s)
    assert spec["max_new_tokens"] == {"0.5": limit}


def _by_hand(model, mel, spec, limit):
    """Greedy decoding of one clip without cache or batch: the slow, obvious way."""
    tokens = list(spec["prompt_ids"])
    for step in range(limit):
        with torch.no_grad():
            logits = model(torch.from_numpy(mel)[None], decoder_input_ids=torch.tensor([tokens])).logits[0, -1]
        logits[spec["suppress_ids"]] = -torch.inf
        if step == 0:
            logits[spec["begin_suppress_ids"]] = -torch.inf
        tokens.append(int(logits.argmax()))
        if tokens[-1] in spec["eos_ids"]:
            return tokens[len(spec["prompt_ids"]) : -1]
    return tokens[len(spec["prompt_ids"]) :]


def test_greedy_equals_decoding_without_cache_or_batch(tokenizer):
    model = tiny_whisper(seed=5)
    spec = decoding_spec(model, tokenizer, tiny_generation_config(), [2.0])
    # An end token that random weights do choose now and then, so that rows of the batch end apart.
    first, _ = torch_greedy(model, MEL, spec, 20)
    spec["eos_ids"] = [EOS, first[0][2]]
    found, _ = torch_greedy(model, MEL, spec, 20)
    assert found == [_by_hand(model, mel, spec, 20) for mel in MEL]
    assert len({len(row) for row in found}) > 1
    assert all(token not in spec["suppress_ids"] for row in found for token in row)


def test_greedy_takes_a_shorter_window_and_leaves_mode_and_checkpointing(tokenizer):
    model = tiny_whisper()
    spec = decoding_spec(model, tokenizer, tiny_generation_config(), [1.0])
    expected = torch_greedy(model, MEL[:, :, :100], spec, 10)
    model.gradient_checkpointing_enable()
    model.train()
    assert torch_greedy(model, torch.from_numpy(MEL[:, :, :100]), spec, 10) == expected
    assert model.training
    assert model.is_gradient_checkpointing
    assert model.config.max_source_positions == 100


def test_greedy_stops_at_the_end_of_the_position_table(whisper, tokenizer):
    spec = decoding_spec(whisper, tokenizer, tiny_generation_config(suppress_tokens=[EOS]), [2.0])
    assert [len(row) for row in torch_greedy(whisper, MEL[:1], spec, 1000)[0]] == [62]


def test_a_loop_is_ended_after_its_first_round(tokenizer):
    model = tiny_whisper()
    spec = decoding_spec(model, tokenizer, tiny_generation_config(), [2.0])
    with torch.no_grad():  # whatever it hears, the next token is 7
        model.model.decoder.layer_norm.weight.zero_()
        model.model.decoder.layer_norm.bias.copy_(model.proj_out.weight[7] * 100)
    for limit in (60, 12):  # a loop, and too few tokens for one
        assert torch_greedy(model, MEL, spec, limit) == ([[7]] * len(MEL), [False] * len(MEL))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_are_no_numbers_are_not_believed(dtype, tokenizer):
    model = tiny_whisper().to(dtype)
    spec = decoding_spec(model, tokenizer, tiny_generation_config(), [2.0])
    with torch.no_grad():
        model.model.decoder.embed_positions.weight[4] = torch.nan  # at the third token
    with pytest.raises(NotFiniteError, match=f"the decoder in {str(dtype)[6:]} answers NaN or infinity on this audio"):
        torch_greedy(model, MEL, spec, 10)


def test_no_warning_of_transformers_reaches_the_user(whisper, tokenizer):
    """An argument that transformers renamed is passed by the name that this release has."""
    spec = decoding_spec(whisper, tokenizer, tiny_generation_config(), [1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens, _ = torch_greedy(whisper, MEL[:1, :, :100], spec, 3)
    assert [len(row) for row in tokens] == [3]
