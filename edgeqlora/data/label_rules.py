"""What a base model can write: its tokens, their limit, and the scripts it knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeqlora.data.text import scripts_of_language
from edgeqlora_jetson.text import language_code


@dataclass(frozen=True)
class LabelRules:
    """Rules that transcripts are held against; with none set, transcripts are not tokenised at all."""

    tokenise: Callable[[str], Sequence[int]] | None = None
    """Text to subword ids, without prompt and end of text."""
    max_text_tokens: int | None = None
    """Most such ids that one label has room for."""
    suppressed_ids: frozenset[int] = frozenset()
    """Ids that decoding never produces."""
    unwritable: Callable[[str], set[str]] | None = None
    """Characters of a text that the model has no way to write; training refuses such texts."""
    fits: Callable[[Sequence[int], float], bool] | None = None
    """Whether a clip of so many seconds can give these ids at all; training refuses clips that cannot."""
    expected_scripts: frozenset[str] | None = None
    """Scripts that the model writes; None: those of each row's own language."""
    language_code: Callable[[str], str | None] | None = None
    """Code of a language's name or code, as the model is told it, or None of what is neither; None: the model is told no
    language."""
    only_language: str | None = None
    """Code of the one language that the model writes; None: it is told one."""


def rules_of_language(language: str | None) -> LabelRules:
    """Rules of a language alone, for a check without a model."""
    expected = scripts_of_language(language) if language else None
    return LabelRules(language_code=_code, expected_scripts=frozenset(expected) if expected else None)


def rules_of_bundle(language: str | None) -> LabelRules:
    """Rules of a bundle whose manifest fixes this language; None: it writes whatever it hears."""
    return LabelRules(language_code=_code if language else None, only_language=language)


def _code(language: str) -> str | None:
    """Code of a code; None of a name, which only a model's own table knows."""
    code = language_code(language)
    return code if code and len(code) <= 3 else None
