"""Prompt, suppression and greedy decoding: one set of rules for torch and board."""

import warnings

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
from edgeqlora_jetson.errors import UserError

MEL = np.random.default_rng(0).normal(0, 1, (4, 80, 200)).astype(np.float32)


def test_english_only_prompt_and_suppression(whisper, tokenizer):
    spec = decoding_spec(whisper, tokenizer, tiny_generation_config(), [0.5, 2])
    assert spec["prompt_ids"] == [SOT, NO_TIMESTAMPS]
    assert (spec["eos_id"], spec["suppress_ids"], spec["begin_suppress_ids"]) == (EOS, [3, SOT], [EOS])
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


def test_a_generation_config_without_suppression_or_none_at_all(whisper, tokenizer):
    bare = tiny_generation_config(suppress_tokens=None, begin_suppress_tokens=None, eos_token_id=[EOS, 1])
    spec = decoding_spec(whisper, tokenizer, bare, [2.0])
    assert (spec["suppress_ids"], spec["begin_suppress_ids"], spec["eos_id"]) == ([], [], EOS)
    assert decoding_spec(whisper, tokenizer, None, [2.0])["prompt_ids"] == [SOT, NO_TIMESTAMPS]


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
        if tokens[-1] == spec["eos_id"]:
            return tokens[len(spec["prompt_ids"]) : -1]
    return tokens[len(spec["prompt_ids"]) :]


def test_greedy_equals_decoding_without_cache_or_batch(tokenizer):
    model = tiny_whisper(seed=5)
    spec = decoding_spec(model, tokenizer, tiny_generation_config(), [2.0])
    # An end token that random weights do choose now and then, so that rows of the batch end apart.
    first = torch_greedy(model, MEL, spec, 20)
    spec["eos_id"] = first[0][2]
    found = torch_greedy(model, MEL, spec, 20)
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
    assert [len(row) for row in torch_greedy(whisper, MEL[:1], spec, 1000)] == [62]


def test_no_warning_of_transformers_reaches_the_user(whisper, tokenizer):
    """An argument that transformers renamed is passed by the name that this release has."""
    spec = decoding_spec(whisper, tokenizer, tiny_generation_config(), [1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens = torch_greedy(whisper, MEL[:1, :, :100], spec, 3)
    assert [len(row) for row in tokens] == [3]
