"""Scripts are told apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqlora.data.text import scripts, scripts_of_language


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
