"""Transcripts as token ids, and the writing systems they are in."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from edgeqlora.errors import UserError

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


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Subword ids of a transcript as Whisper writes it: with a space in front, where the script has spaces.

    Whisper's own transcripts begin so (" The"): the other spelling would make every first word another token than the
    one the base model knows. An empty text has no ids. Texts are stripped again after decoding.
    """
    text = text.strip()
    first = next((s for s in map(_script, text) if s), "LATIN")
    spaced = text if not text or first in UNSPACED else f" {text}"
    return list(tokenizer(spaced, add_special_tokens=False)["input_ids"])


class TextEncoder:
    """Transcripts to the labels of an encoder-decoder model.

    Labels are `prompt[1:] + text + end of text`. The first prompt id (Whisper's start of transcript, its BOS)
    is not among them: the model shifts labels right by one and puts that id in front itself, so the decoder
    reads `prompt + text` and learns to say `prompt[1:] + text + end of text`.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int], max_label_tokens: int, eos_id: int) -> None:
        """`tokenizer` is a transformers tokenizer; `max_label_tokens` is the model's limit on labels.

        Raises UserError when prompt and end leave no room for text.
        """
        self.prompt_ids = list(prompt_ids)
        self.eos_id = eos_id
        self.max_label_tokens = max_label_tokens
        self.max_text_tokens = max_label_tokens - len(self.prompt_ids[1:]) - 1
        """Text tokens that fit between prompt and end of text."""
        self._tokenizer = tokenizer
        if self.max_text_tokens < 1:
            raise UserError(
                f"max_label_tokens={max_label_tokens} leaves no room for text: "
                f"prompt and end of text take {len(self.prompt_ids)}: give {len(self.prompt_ids) + 1} or more"
            )

    def text_ids(self, text: str) -> list[int]:
        """Subword ids of the text alone, in full: no prompt, no end of text, nothing cut."""
        return text_ids(self._tokenizer, text)

    def encode(self, text: str) -> tuple[list[int], int]:
        """Labels, at most `max_label_tokens` of them, and the number of text tokens cut off to get there.

        The end of text is always there: a model must learn to stop even where the transcript was cut.
        """
        ids = self.text_ids(text)
        kept = ids[: self.max_text_tokens]
        return [*self.prompt_ids[1:], *kept, self.eos_id], len(ids) - len(kept)


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
