"""The writing systems that transcripts are in."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

# Scripts of the languages of Whisper that are not written in Latin letters (ISO 639 code to Unicode names).
SCRIPTS = {
    "am": {"ETHIOPIC"},
    "ar": {"ARABIC"},
    "as": {"BENGALI"},
    "ba": {"CYRILLIC"},
    "be": {"CYRILLIC"},
    "bg": {"CYRILLIC"},
    "bn": {"BENGALI"},
    "bo": {"TIBETAN"},
    "el": {"GREEK"},
    "fa": {"ARABIC"},
    "gu": {"GUJARATI"},
    "he": {"HEBREW"},
    "hi": {"DEVANAGARI"},
    "hy": {"ARMENIAN"},
    "ja": {"CJK", "HIRAGANA", "KATAKANA"},
    "ka": {"GEORGIAN"},
    "kk": {"CYRILLIC"},
    "km": {"KHMER"},
    "kn": {"KANNADA"},
    "ko": {"HANGUL", "CJK"},
    "lo": {"LAO"},
    "mk": {"CYRILLIC"},
    "ml": {"MALAYALAM"},
    "mn": {"CYRILLIC"},
    "mr": {"DEVANAGARI"},
    "my": {"MYANMAR"},
    "ne": {"DEVANAGARI"},
    "pa": {"GURMUKHI"},
    "ps": {"ARABIC"},
    "ru": {"CYRILLIC"},
    "sa": {"DEVANAGARI"},
    "sd": {"ARABIC"},
    "si": {"SINHALA"},
    "sr": {"CYRILLIC", "LATIN"},
    "ta": {"TAMIL"},
    "te": {"TELUGU"},
    "tg": {"CYRILLIC"},
    "th": {"THAI"},
    "tt": {"CYRILLIC"},
    "uk": {"CYRILLIC"},
    "ur": {"ARABIC"},
    "yi": {"HEBREW"},
    "yue": {"CJK"},
    "zh": {"CJK"},
}


UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"}
"""Scripts that put no spaces between words."""


def first_script(text: str) -> str:
    """Writing system of the first letter; LATIN where there is none."""
    return next((script for script in map(_script, text) if script), "LATIN")


def scripts(text: str) -> set[str]:
    """Writing systems of the letters in a text, e.g. {"LATIN", "CYRILLIC"}; digits and punctuation have none.

    Compatibility forms count as what they stand for (a fullwidth A is LATIN).
    """
    found = {_script(character) for character in set(unicodedata.normalize("NFKC", text))}
    found.discard("")
    return found


def scripts_of_language(language: str) -> set[str]:
    """Scripts of a language code, its region ignored (`zh-CN` is `zh`); Latin for those not listed."""
    return SCRIPTS.get(language.lower().replace("_", "-").split("-")[0], {"LATIN"})


@lru_cache(maxsize=8192)
def _script(character: str) -> str:
    """First word of a letter's Unicode name, which is its script; "" for anything but letters."""
    if not unicodedata.category(character).startswith("L"):
        return ""
    name = unicodedata.name(character, "")
    # Letters of no script: modifiers, the prolonged sound mark, mathematical alphabets.
    if name.startswith(("MODIFIER", "KATAKANA-HIRAGANA", "MATHEMATICAL", "MASCULINE", "FEMININE")):
        return ""
    return name.split(" ")[0]
