"""Transcripts: the writing systems they are in, and what is wrong with their characters."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Set

from edgeqlora.data.row import Row
from edgeqlora_jetson.text import language_code, script_of

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


def common_language(rows: Iterable[Row]) -> str | None:
    """Language of all rows that name one; None where they differ or no row does."""
    found = {row.language for row in rows} - {None}
    return found.pop() if len(found) == 1 else None


def scripts(text: str) -> set[str]:
    """Writing systems of the letters in a text, e.g. {"LATIN", "CYRILLIC"}; digits and punctuation have none.

    Compatibility forms count as what they stand for (a fullwidth A is LATIN).
    """
    found = {script_of(character) for character in set(unicodedata.normalize("NFKC", text))}
    found.discard("")
    return found


def scripts_of_language(language: str) -> set[str] | None:
    """Scripts of a language code, its region ignored; Latin for codes not listed, None for what is no code of 2 or 3 letters."""
    code = language_code(language)
    if code is None or not 2 <= len(code) <= 3:
        return None
    return {script for script, codes in LANGUAGES_OF_SCRIPT.items() if code in codes.split()} or {"LATIN"}


def in_other_script(text: str, expected: Set[str]) -> bool:
    """Whether a text has letters, and none of a script that is expected."""
    found = scripts(text)
    return bool(found) and not found & expected


def is_most(n: int, n_rows: int) -> bool:
    """Whether so many rows are in another script that it is no exception: language or text column are wrong then."""
    return 2 * n > n_rows


CONTROL = re.compile(r"<\|[^<>|\s]*\|>|</?s>|<(?:unk|pad|mask|bos|eos)>|\[(?:UNK|PAD|CLS|SEP|MASK)\]")
"""What the control tokens of speech models look like."""


def control_texts(text: str) -> list[str]:
    """Parts of a transcript that are written as control tokens are, such as <|endoftext|>."""
    return CONTROL.findall(text)


def broken_parts(text: str) -> list[str]:
    """Parts of a text that show that it was read in the wrong encoding.

    The replacement character, controls that no text has (U+0080 to U+009F), and runs beyond ASCII that are UTF-8 read
    as Windows-1252 (such as the two signs that an e with an acute accent becomes) or Windows-1251.
    """
    return re.findall("[\ufffd\x80-\x9f]", text) + [run for run in _BEYOND_ASCII.findall(text) if _is_misread(run)]


_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")


def _is_misread(run: str) -> bool:
    """Whether the whole run is UTF-8 in another encoding; short ones only as they are common, for "ß“" is German."""
    short = re.fullmatch("[ÂÃÄÅ][\xa0-\xaa\xac-\xba\xbc-\xbf]|â€.", run)
    for encoding in ("cp1252", "cp1251") if len(run) >= 4 else ("cp1252",) if short else ():
        try:
            run.encode(encoding).decode("utf-8")
        except UnicodeError:
            continue
        return True
    return False


def other_spelling(path: str) -> str | None:
    """The path as the disk writes it, where it differs only in composed and decomposed letters; None: no such file.

    A Mac writes "é" in a file name as e and an accent (NFD), most other programs as one letter (NFC).
    """
    found = os.sep if os.path.isabs(path) else ""
    for part in path.split(os.sep):
        if not part:
            continue
        whole = os.path.join(found, part)
        if not os.path.exists(whole):
            try:
                names = os.listdir(found or ".")
            except OSError:
                return None
            wanted = unicodedata.normalize("NFC", part)
            alike = next((name for name in names if unicodedata.normalize("NFC", name) == wanted), None)
            if alike is None:
                return None
            whole = os.path.join(found, alike)
        found = whole
    return found if found != path else None


def name_hint(path: str) -> str:
    """For the message about a missing file: what it is called on the disk, if only accents are written otherwise."""
    found = other_spelling(path)
    if found is None:
        return ""
    form = "NFD" if unicodedata.is_normalized("NFD", found) else "NFC"
    return (
        f"; the disk has it with its accents written in the other way ({form}): rename the file, "
        "or write the data set's file names as the disk has them"
    )
