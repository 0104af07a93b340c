"""Texts: normalisers for error rates, languages that put no spaces between words, and joining pieces of a recording."""

import re
import unicodedata
from functools import lru_cache
from typing import Callable, Dict, Iterable, Optional, Sequence

UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"}
"""Scripts that put no spaces between words, by the first word of their letters' names in Unicode."""

UNSPACED_LANGUAGES = (
    ("zh", "ja", "th", "lo", "km", "my", "bo", "yue", "dz", "cmn", "wuu")
    + ("zho", "chi", "jpn", "tha", "lao", "khm", "mya", "bur", "bod", "tib", "dzo")
    + ("chinese", "mandarin", "cantonese", "japanese", "thai", "khmer", "myanmar", "burmese", "tibetan")
)
"""Languages written in them: codes of ISO 639-1, -2 and -3, and the names that Whisper takes."""

DOTLESS_I_LANGUAGES = ("tr", "az", "tur", "aze", "turkish", "azerbaijani")
"""Where the small letter of I is a dotless i."""

_APOSTROPHES = dict.fromkeys(
    map(ord, "\u00b4\u0060\u2032\u02b9\u05f3\u02bb\u02bd\u2018\u2019\u201b\u02bc\u055a\uff07"), "'"
)
# Drawn nowhere, or only as a longer line: they change how letters look, never which letters they are.
_INVISIBLE = set("\u0640\u034f\u115f\u1160\u3164\uffa0\u17b4\u17b5\u180b\u180c\u180d\u180f")
_DOT_ABOVE = "\u0307"
# Letters that Python 3.6's Unicode 9 does not know yet: capitals of Georgian (Unicode 11).
_NEWER_CAPITALS = {0x1C90 + i: 0x10D0 + i for i in range(48)}
_EDGE = "\0"  # between a number written as one sign and its neighbours, while they are put together


def normalise_none(text: str, language: Optional[str] = None) -> str:
    """Leave the text as it is."""
    return text


def normalise_unicode(text: str, language: Optional[str] = None) -> str:
    """Letters, marks and digits of a text in NFKC and case-folded; punctuation and symbols become single spaces.

    No words are rewritten. Apostrophes inside words stay ("don't"), whichever sign was used. Signs that are not seen
    (joiners, soft hyphens, direction marks, variation selectors, tatweel) are removed and split no word. A mark stays
    where it follows a letter. Superscripts and fractions stand apart: 10² is "10 2", 1½ is "1 1 2".
    language: a code; in Turkish and Azerbaijani, I is the capital of the dotless i.
    """
    visible = "".join(char for char in unicodedata.normalize("NFC", text) if not _is_invisible(char))
    text = "".join(map(_spelled_out, unicodedata.normalize("NFC", visible)))
    text = unicodedata.normalize("NFKC", re.sub(r"(?<=\d)\0+(?=\d)", " ", text).replace(_EDGE, ""))
    if language_code(language) in DOTLESS_I_LANGUAGES:
        text = text.replace("I", "\u0131").replace("\u0130", "i")
    for _ in range(2):  # a folded letter may be one that NFKC spells otherwise, and that one may have a capital
        text = unicodedata.normalize("NFKC", text.translate(_NEWER_CAPITALS).casefold())
    text = _kept(unicodedata.normalize("NFD", text).translate(_APOSTROPHES))
    words = (word.strip("'") for word in re.sub("''+", " ", text).split())
    return unicodedata.normalize("NFC", " ".join(word for word in words if word))


NORMALISERS: Dict[str, Callable[[str, Optional[str]], str]] = {
    "none": normalise_none,
    "basic-unicode": normalise_unicode,
}


def language_code(language: Optional[str]) -> Optional[str]:
    """`zh-CN`, `ZH_tw` -> `zh`; None stays None."""
    return None if language is None else language.lower().replace("_", "-").split("-")[0]


def written_language(language: Optional[str], task: Optional[str]) -> Optional[str]:
    """The language of the text: that of the speech, but English where Whisper's task is translate."""
    return "en" if task == "translate" else language


@lru_cache(maxsize=8192)
def script_of(char: str) -> str:
    """First word of a letter's Unicode name, which is its script; "" for anything but letters."""
    if not unicodedata.category(char).startswith("L"):
        return ""
    name = unicodedata.name(char, "")
    # Letters of no script: modifiers, the prolonged sound mark, mathematical alphabets.
    if name.startswith(("MODIFIER", "KATAKANA-HIRAGANA", "MATHEMATICAL", "MASCULINE", "FEMININE")):
        return ""
    return name.split(" ")[0]


def why_no_words(references: Iterable[str], language: Optional[str] = None) -> Optional[str]:
    """Why errors of words cannot be counted: texts written without spaces between words. None: they can.

    By the language where it is known to be such a one, and by the texts: they have at least as many letters of such
    scripts as words of others. Of these, the error rate of characters is the one to read and to choose by.
    """
    code = language_code(language)
    if code in UNSPACED_LANGUAGES:
        return "{} is written without spaces between words: read CER".format(code)
    n_letters, n_words = 0, 0
    for word in (word for text in references for word in text.split()):
        found = [script for script in map(script_of, word) if script]
        n_unspaced = sum(script in UNSPACED for script in found)
        n_letters += n_unspaced
        n_words += bool(found) and not n_unspaced
    if n_letters and n_letters >= n_words:
        return "these texts are written without spaces between words: read CER"
    return None


def join_pieces(pieces: Sequence[str], language: Optional[str] = None) -> str:
    """The texts of a recording's pieces as one, as its language is written: joined by a space, or by nothing.

    language: None where it is not known; then, and in a language without spaces, the letters on both sides decide.
    """
    code = language_code(language)
    joined = ""
    for piece in pieces:
        if not joined or not piece:
            joined += piece
            continue
        if code is not None and code not in UNSPACED_LANGUAGES:
            joined += " " + piece
            continue
        nearest = [first_script(reversed(joined)), first_script(piece)]
        known = [script in UNSPACED for script in nearest if script]
        joined += piece if (any(known) if known else code is not None) else " " + piece
    return joined


def first_script(chars: Iterable[str]) -> str:
    """Script of the first letter; "" where there is none."""
    return next((script for script in map(script_of, chars) if script), "")


def _category(char: str) -> str:
    """Unicode category; a letter that this Python's tables do not know yet is one, a newer pictograph is a symbol."""
    category = unicodedata.category(char)
    if category != "Cn":
        return category
    code = ord(char)
    is_letter = not 0x1F000 <= code <= 0x1FBFF and code & 0xFFFE != 0xFFFE and not 0xFDD0 <= code <= 0xFDEF
    return "Lo" if is_letter else category


def _is_invisible(char: str) -> bool:
    """Format characters, variation selectors, enclosing marks (U+20E3 of a keycap), fillers."""
    if char in _INVISIBLE or "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef":
        return True
    return unicodedata.category(char) in ("Cf", "Me")


def _spelled_out(char: str) -> str:
    """What a compatibility character stands for; numbers that are one sign apart from what is beside them.

    NFKC alone would make 102 of 10², and an accent on the next letter of a spacing accent.
    """
    if ord(char) in _APOSTROPHES:
        return "'"
    category = _category(char)
    if category == "Cc":
        return " "
    kind, _, codes = unicodedata.decomposition(char).partition(" ")
    if not kind.startswith("<"):
        return char
    first = codes.split()[0]
    if first == "0020" or (kind == "<super>" and category == "So"):
        return " "  # a spacing accent; a trade mark
    text = "".join(_spelled_out(chr(int(code, 16))) for code in codes.split())
    if category == "No" and kind != "<sub>":
        return " " + text + " "
    if category != "Nd" and (text[:1].isdigit() or text[-1:].isdigit()):
        return _EDGE + text + _EDGE
    return text


def _kept(text: str) -> str:
    """Letters, digits, their marks and apostrophes of a text in NFD; all else becomes a space, and a stray mark nothing."""
    kept = []
    letter = ""  # that marks may follow
    for char in text:
        if _is_invisible(char):
            continue
        kind = _category(char)[0]
        if kind == "M":
            if letter and not (letter == "i" and char == _DOT_ABOVE):
                kept.append(char)
            continue
        letter = char if kind == "L" else ""
        kept.append(char if kind in "LN" or char == "'" else " ")
    return "".join(kept)
