"""The writing systems that transcripts are in."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

# Languages of Whisper (ISO 639 codes) that are not written in Latin letters alone, by script (as Unicode names it).
LANGUAGES_OF_SCRIPT = {
    "ARABIC": "ar fa ps sd ur",
    "ARMENIAN": "hy",
    "BENGALI": "as bn",
    "CJK": "ja ko yue zh",
    "CYRILLIC": "ba be bg kk mk mn ru sr tg tt uk",
    "DEVANAGARI": "hi mr ne sa",
    "ETHIOPIC": "am",
    "GEORGIAN": "ka",
    "GREEK": "el",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "HANGUL": "ko",
    "HEBREW": "he yi",
    "HIRAGANA": "ja",
    "KANNADA": "kn",
    "KATAKANA": "ja",
    "KHMER": "km",
    "LAO": "lo",
    "LATIN": "sr",
    "MALAYALAM": "ml",
    "MYANMAR": "my",
    "SINHALA": "si",
    "TAMIL": "ta",
    "TELUGU": "te",
    "THAI": "th",
    "TIBETAN": "bo",
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


def language_base(language: str) -> str:
    """Code of a language without its region: `zh-CN` is `zh`."""
    return language.strip().lower().replace("_", "-").split("-")[0]


def scripts_of_language(language: str) -> set[str] | None:
    """Scripts of a language code, its region ignored; Latin for codes not listed, None for what is no code of 2 or 3 letters."""
    code = language_base(language)
    if not 2 <= len(code) <= 3:
        return None
    return {script for script, codes in LANGUAGES_OF_SCRIPT.items() if code in codes.split()} or {"LATIN"}


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
