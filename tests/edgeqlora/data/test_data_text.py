"""Scripts are told apart, and what is wrong with characters is found."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqlora.data.text import broken_parts, control_texts, name_hint, other_spelling, scripts, scripts_of_language


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


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("caf\u00e9 \u00e0 No\u00ebl", "cp1252"),
        ("caf\u00e9", "latin-1"),
        ("it\u2019s", "cp1252"),
        ("\u043f\u0440\u0438\u0432\u0435\u0442", "cp1252"),
        ("\u043f\u0440\u0438\u0432\u0435\u0442", "cp1251"),
        ("\u6771\u4eac", "latin-1"),
    ],
)
def test_text_in_the_wrong_encoding(text, encoding):
    misread = text.encode().decode(encoding, errors="replace")
    assert broken_parts(misread)
    assert not broken_parts(text)


@pytest.mark.parametrize(
    "text",
    [
        "\u201eEr ist gro\u00df\u201c, sagt sie \u2026 S\u00c3O A\u00c7\u00c3O",
        "\u00ab\u00e0 caf\u00e9\u2026\u00bb",
        "\u0420\u0451\u0431\u0440\u0430 \u0412\u0441\u0451 \u0401\u043b\u043a\u0430",
        "\u0110\u00e0 N\u1eb5ng",
        "\u4eca\u5929",
    ],
)
def test_right_texts_are_not_taken_for_broken_ones(text):
    assert not broken_parts(text)


def test_signs_that_no_text_has():
    assert broken_parts("a\ufffdb\x85c") == ["\ufffd", "\x85"]
    assert control_texts("a <|endoftext|> b <|0.00|></s> [PAD] <b> [noise] a <| b |> c") == [
        "<|endoftext|>", "<|0.00|>", "</s>", "[PAD]",
    ]  # fmt: skip


@given(st.text(max_size=40))
def test_any_text_can_be_looked_at(text):
    assert all(part in text for part in [*broken_parts(text), *control_texts(text)])


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_a_file_name_in_other_letters_is_found(tmp_path, on_disk):
    other = "NFD" if on_disk == "NFC" else "NFC"
    folder, name = (unicodedata.normalize(on_disk, text) for text in ("No\u00ebl", "caf\u00e9.wav"))
    (tmp_path / folder).mkdir()
    (tmp_path / folder / name).touch()
    written = tmp_path / unicodedata.normalize(other, folder) / unicodedata.normalize(other, name)
    assert other_spelling(str(written)) == str(tmp_path / folder / name)
    assert f"({on_disk})" in name_hint(str(written))
    assert name_hint(str(tmp_path / "gone.wav")) == name_hint(str(tmp_path / "gone" / name)) == ""
    assert other_spelling(str(tmp_path / folder / name)) is None
