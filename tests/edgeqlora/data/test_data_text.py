"""Labels hold prompt, text and end in the places the model expects; scripts are told apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqlora.data.text import TextEncoder, scripts, scripts_of_language
from edgeqlora.errors import UserError


class Words:
    """A tokenizer with one id a word: its length."""

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [len(word) for word in text.split()]}


def test_labels_are_prompt_text_end():
    encoder = TextEncoder(Words(), prompt_ids=[90, 91], max_label_tokens=5, eos_id=99)
    assert encoder.max_text_tokens == 3
    assert encoder.encode("a bb ccc") == ([91, 1, 2, 3, 99], 0)
    assert encoder.encode("a bb ccc dddd eeeee") == ([91, 1, 2, 3, 99], 2)
    assert encoder.encode("") == ([91, 99], 0)
    assert encoder.text_ids("a bb ccc dddd") == [1, 2, 3, 4]


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 4), st.integers(5, 20))
def test_labels_always_fit_and_end(lengths, n_prompt, most):
    encoder = TextEncoder(Words(), list(range(90, 90 + n_prompt)), most, 99)
    labels, n_cut = encoder.encode(" ".join("x" * length for length in lengths))
    assert len(labels) <= most
    assert labels[-1] == 99
    assert len(labels) + n_cut == n_prompt - 1 + len(lengths) + 1


def test_no_room_for_text():
    with pytest.raises(UserError, match=r"max_label_tokens=2 leaves no room for text: .* give 3 or more"):
        TextEncoder(Words(), [90, 91], 2, 99)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello, it's 5 o'clock: größer", {"LATIN"}),
        ("привет", {"CYRILLIC"}),
        ("p\u0430ypal", {"LATIN", "CYRILLIC"}),
        ("今日はカタカナー", {"CJK", "HIRAGANA", "KATAKANA"}),
        ("\uff21\uff42", {"LATIN"}),
        ("नमस्ते", {"DEVANAGARI"}),
        ("안녕", {"HANGUL"}),
        ("123 !? 😀", set()),
        ("", set()),
    ],
)
def test_scripts(text, expected):
    assert scripts(text) == expected


@given(st.text(max_size=30))
def test_scripts_of_any_text(text):
    assert "" not in scripts(text)


def test_scripts_of_languages():
    assert scripts_of_language("en") == scripts_of_language("de") == {"LATIN"}
    assert scripts_of_language("zh-CN") == {"CJK"}
    assert scripts_of_language("RU_ru") == {"CYRILLIC"}


@pytest.mark.real
def test_real_tokenizer(shared):
    from transformers import WhisperTokenizer

    tokenizer = WhisperTokenizer.from_pretrained(shared / "models" / "whisper-tiny.en")
    encoder = TextEncoder(tokenizer, [50257, 50362], 448, 50256)
    labels, n_cut = encoder.encode("zero one")
    assert (labels[0], labels[-1], n_cut) == (50362, 50256, 0)
    # As Whisper's own transcripts: the first word is the token that the base model knows from the middle of sentences.
    assert tokenizer.decode(labels, skip_special_tokens=True) == " zero one"
    assert tokenizer.decode(encoder.encode("こんにちは")[0], skip_special_tokens=True) == "こんにちは"
    assert encoder.text_ids("  ") == []
    labels, n_cut = encoder.encode("word " * 500)
    assert (len(labels), labels[-1]) == (448, 50256)
    assert n_cut > 50
